import csv
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins import MixedPrecision
from torch import nn

import trainer.fit
from configs.run import RunDirectory
from tests.unit.trainer.runs import new_run, rows, train
from tests.unit.trainer.settings import settings
from trainer.gauges import Since, Utilisation, forward_flops, learning_rates, loss_scale, percentile
from trainer.optimization import build_optimizer, build_scheduler
from trainer.saver import Saver

Overrides = Callable[..., list[str]]
PAGE = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def training_rows(run: RunDirectory) -> list[dict[str, str]]:
    return [row for row in rows(run) if row["train/loss"]]


def test_each_layers_rate_is_there_where_they_differ() -> None:
    network = timm.create_model("efficientnet_b0", num_classes=4)
    config = settings(optimizer__layer_decay=0.5, optimizer__lr=0.5, scheduler__warmup_epochs=0)
    optimizer = build_optimizer(network, config.optimizer)
    build_scheduler(optimizer, config.scheduler, max_epochs=2, updates_per_epoch=10).step_update(0)
    rates = learning_rates(optimizer)
    groups = [value for name, value in rates.items() if name.startswith("lr_group/")]

    assert rates["lr"] == max(groups) == 0.5
    assert len(groups) == len(optimizer.param_groups)
    assert min(groups) < 1e-3
    alike = build_optimizer(network, settings(optimizer__lr=0.5).optimizer)
    assert learning_rates(alike) == {"lr": 0.5}


def test_the_scale_of_the_loss_is_that_of_the_scaler() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    plugin = MixedPrecision("16-mixed", "cpu", scaler=scaler)
    mixed = Trainer(accelerator="cpu", devices=1, logger=False, plugins=[plugin])
    scaler.scale(torch.ones(1))  # makes it

    assert loss_scale(mixed) == {"train/loss_scale": 1024.0}
    assert loss_scale(Trainer(accelerator="cpu", devices=1, logger=False)) == {}


def test_the_gradients_norm_is_that_of_the_rows_step_before_it_is_clipped(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, float] = {}
    clip = trainer.assembly.EfficientNetModule.configure_gradient_clipping

    def noting(self: trainer.assembly.EfficientNetModule, *given: object, **named: object) -> None:
        gradients = [parameter.grad.double().flatten() for parameter in self.network.parameters()]
        found[self.trainer.global_step + 1] = float(torch.cat(gradients).norm())
        clip(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(trainer.assembly.EfficientNetModule, "configure_gradient_clipping", noting)
    changes = {"trainer__max_steps": 4, "trainer__log_every_n_steps": 2, "trainer__gradient_clip_val": 1e-3}
    run = train(new_run(toy_overrides(**changes), tmp_path))

    written = {int(row["step"]): float(row["train/grad_norm"]) for row in training_rows(run)}
    assert written == {step: pytest.approx(found[step], rel=1e-4) for step in (2, 4)}


def test_the_averages_decay_is_timms(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = train(new_run(toy_overrides(trainer__max_steps=3, ema__use_warmup="true"), tmp_path))

    decays = [float(row["train/ema_decay"]) for row in training_rows(run)]
    assert decays == pytest.approx([1 - step ** (-2 / 3) for step in (1, 2, 3)])


def test_time_that_saves_take_is_in_the_row_that_follows(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = Saver.save

    def slow(*given: object) -> None:
        save(*given)  # type: ignore[arg-type]
        time.sleep(0.5)

    monkeypatch.setattr(Saver, "save", slow)
    run = train(new_run(toy_overrides(trainer__max_steps=5, checkpoint__every_n_steps=3), tmp_path))

    stalls = [float(row["checkpoint/stall_s"]) for row in training_rows(run)]
    assert [stall > 0.5 for stall in stalls] == [False, False, False, True, False]
    assert stalls[0] == stalls[1] == stalls[2] == stalls[4] == 0.0


def test_percentiles_are_values_that_were_there() -> None:
    assert percentile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert percentile([float(value) for value in range(1, 101)], 0.95) == 95.0
    assert percentile([7.0], 0.95) == 7.0


def test_growth_is_since_the_last_time() -> None:
    counts = iter([2.0, 5.0, 5.0])
    grown = Since(lambda: next(counts))
    assert [grown(), grown(), grown()] == [2.0, 3.0, 0.0]


def test_utilisation_is_of_the_papers_multiply_adds() -> None:
    network = timm.create_model("efficientnet_b0")
    flops = forward_flops(network.to("meta").eval(), (3, 224, 224))
    assert flops / 2 == pytest.approx(0.39e9, rel=0.02)  # Tan and Le, table 2

    utilisation = Utilisation(settings(trainer__precision="bf16-mixed", launch__hardware__bf16_tflops=312))
    utilisation.prepare(network)
    (value,) = utilisation.of((128, 3, 224, 224), images_per_second=2489).values()
    assert value == pytest.approx(3 * flops * 2489 / 312e12)
    assert len(next(iter(network.parameters())).shape) == 4


def test_without_a_peak_for_the_precision_there_is_no_utilisation() -> None:
    utilisation = Utilisation(settings(trainer__precision="32-true", launch__hardware__bf16_tflops=312))
    utilisation.prepare(nn.Linear(1, 1))
    assert utilisation.of((1, 3, 32, 32), images_per_second=1.0) == {}


def test_the_page_of_metrics_has_every_name_that_a_run_logs(toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"trainer__max_steps": 2, "launch__hardware__fp32_tflops": 0.1, "optimizer__layer_decay": 0.9}
    run = train(new_run(toy_overrides(**changes), tmp_path))
    with run.metrics_file.open(newline="") as file:
        logged = set(next(csv.reader(file)))

    described = set(re.findall(r"^\| `([^`]+)` \|", PAGE, flags=re.MULTILINE))
    assert {"train/grad_norm", "throughput/mfu", "lr_group/00", "val/ema_top5"} <= logged
    logged = {re.sub(r"/node\d+/", "/nodeN/", re.sub(r"^lr_group/\d\d$", "lr_group/NN", name)) for name in logged}
    assert logged <= described
    # What this run, on a CPU in fp32, with no fault and local shards, has no reason to log.
    elsewhere = {name for name in described if name.startswith(("device/", "events/"))}
    elsewhere |= {
        name for name in described if re.match("data/(network|cache|download)|system/nodeN/(gpu|cache)", name)
    }
    elsewhere |= {"train/loss_scale", "checkpoint/failures", "trainer/global_step"}
    assert described - elsewhere == logged
