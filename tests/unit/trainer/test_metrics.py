import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback
from rich.console import Console
from torch.nn.functional import cross_entropy

from configs.run import RunDirectory
from datamodules.images.decoding import open_image
from datamodules.streaming.transforms import evaluation_transform
from tests.conftest import NUM_CLASSES, picture
from tests.unit.trainer.runs import ALONE, average, new_run, rows, train, weights
from trainer import metrics
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.evaluation.command import Request, validate
from trainer.network import build_network
from trainer.optimization import build_optimizer, build_scheduler
from trainer.tracking import MetricsCsv

Overrides = Callable[..., list[str]]
SAMPLES, BATCH = 129, 16


def training_rows(run: RunDirectory) -> list[dict[str, str]]:
    return [row for row in rows(run) if row["train/loss"]]


def validation_rows(run: RunDirectory) -> list[dict[str, str]]:
    return [row for row in rows(run) if row["val/loss"]]


def test_every_step_has_a_row_and_every_epoch_one_of_its_validation(trained: RunDirectory) -> None:
    assert [row["step"] for row in training_rows(trained)] == [str(step) for step in range(1, 18)]
    assert [row["step"] for row in validation_rows(trained)] == ["9", "17"]


def test_every_row_has_the_axes(trained: RunDirectory) -> None:
    for row in rows(trained):
        step = int(row["step"])
        assert row["attempt"] == "0"
        assert int(row["samples_seen"]) == step * BATCH
        assert float(row["epoch"]) == pytest.approx(step * BATCH / SAMPLES)


def test_a_training_row_is_the_mean_over_the_steps_since_the_one_before(
    trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = train(new_run(toy_overrides(trainer__max_epochs=2, trainer__log_every_n_steps=5), tmp_path))
    single = training_rows(trained)

    assert [row["step"] for row in training_rows(run)] == ["5", "10", "15"]
    for number, row in enumerate(training_rows(run)):
        for name in ("train/loss", "train/top1"):
            steps = [float(step[name]) for step in single[5 * number : 5 * number + 5]]
            assert float(row[name]) == pytest.approx(sum(steps) / 5, rel=1e-6)


def test_a_training_row_has_the_next_learning_rate_and_a_throughput(trained: RunDirectory) -> None:
    config = trained.load_config()
    optimizer = build_optimizer(build_network(config), config.optimizer)
    updates = SAMPLES / config.data.global_batch_size
    schedule = build_scheduler(
        optimizer, config.scheduler, max_epochs=config.trainer.max_epochs, updates_per_epoch=updates
    )
    for row in training_rows(trained):
        schedule.step_update(int(row["step"]))
        assert float(row["lr"]) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        assert float(row["throughput/images_per_second"]) > 0


class Clock(Callback):
    """Time in which a micro-batch takes half a second, and a batch of a validation 100 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_start(self, *_: object) -> None:
        self.now += 0.5

    def on_validation_batch_start(self, *_: object) -> None:
        self.now += 100


def test_validation_does_not_count_as_time_of_training(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(metrics, "time", clock)
    run = new_run(toy_overrides(trainer__max_epochs=2), tmp_path)
    config = run.load_config()
    callbacks = [clock, metrics.TrainingMetrics(config, attempt=0)]
    logger = MetricsCsv(run, resumed_step=0)
    trainer = build_trainer(config, ALONE, "cpu", callbacks=callbacks, loggers=[logger])
    trainer.fit(build_module(config), build_datamodule(config, "cpu"))

    assert [float(row["throughput/images_per_second"]) for row in training_rows(run)] == [16.0] * 17


@pytest.mark.parametrize(("kind", "prefix"), [(weights, "val/"), (average, "val/ema_")])
def test_validation_is_exact_over_all_samples(
    kind: Callable[[RunDirectory, int], dict[str, torch.Tensor]], prefix: str, trained: RunDirectory
) -> None:
    config = trained.load_config()
    module = build_module(config)
    module.network.load_state_dict(kind(trained, 17))
    transform = evaluation_transform(config.data, 64)
    images = torch.stack([transform(open_image(picture(number), "RGB")) for number in range(1000, 1037)])
    labels = torch.arange(1000, 1037) % NUM_CLASSES
    with torch.no_grad():
        logits = module.eval()(images)

    row = validation_rows(trained)[-1]
    assert float(row[f"{prefix}loss"]) == pytest.approx(float(cross_entropy(logits, labels)), rel=1e-4)
    assert float(row[f"{prefix}top1"]) == pytest.approx(float((logits.argmax(1) == labels).double().mean()))
    assert float(row[f"{prefix}top5"]) == 1.0  # of four classes


def test_validating_a_finished_run_gives_what_its_training_did(trained: RunDirectory) -> None:
    output = io.StringIO()
    validate(Request(run=trained.path), processes=ALONE, console=Console(file=output, width=120))
    assert "step 17: 37 samples" in output.getvalue()
    row = validation_rows(trained)[-1]
    for name in ("val/top1", "val/ema_top1", "val/loss", "val/ema_loss"):
        assert f"{float(row[name]):.4f}" in output.getvalue()


def test_validating_at_another_size_is_of_larger_images_and_their_crop(trained: RunDirectory) -> None:
    output = io.StringIO()
    console = Console(file=output, width=120)
    validate(Request(run=trained.path, image_sizes=(96,), crop_pcts=(1.0,)), processes=ALONE, console=console)

    config = trained.load_config()
    module = build_module(config)
    module.network.load_state_dict(weights(trained, 17))
    transform = evaluation_transform(config.data.model_copy(update={"crop_pct": 1.0}), 96)
    images = torch.stack([transform(open_image(picture(number), "RGB")) for number in range(1000, 1037)])
    with torch.no_grad():
        logits = module.eval()(images)
    result = json.loads((trained.path / "validation.json").read_text())
    expected = float(cross_entropy(logits, torch.arange(1000, 1037) % NUM_CLASSES))
    assert result["val/loss"] == pytest.approx(expected, rel=1e-4)
    assert (result["image_size"], result["crop_pct"], result["samples"]) == (96, 1.0, 37)
    assert "37 samples of 96 pixels" in output.getvalue()


def test_validating_an_earlier_checkpoint_is_of_that_step(trained: RunDirectory) -> None:
    output = io.StringIO()
    path = trained.checkpoints / "step-000000009"
    validate(Request(run=trained.path, checkpoint=path), processes=ALONE, console=Console(file=output, width=120))

    assert "step 9: 37 samples" in output.getvalue()
    assert f"{float(validation_rows(trained)[0]['val/loss']):.4f}" in output.getvalue()
