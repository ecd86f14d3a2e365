"""16 bits beside fp32 over 200 steps, and the loss scaler across a resume."""

from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins.precision import MixedPrecision

from benchmarks.precision import distances, means, scaler_for
from benchmarks.precision import train as train_in_memory
from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, checkpoint, new_run, train, weights
from trainer import fit

Overrides = Callable[..., list[str]]
STEPS = 200
LEARNABLE = {
    "data__image_size": 32,
    "data__augmentation__enabled": "false",
    "data__augmentation__auto_augment": None,
    "loss__mixup_alpha": 0.0,
    "loss__cutmix_alpha": 0.0,
    "loss__label_smoothing": 0.0,
    "data__micro_batch_size": 16,
    "optimizer__lr": 0.0003,
    "scheduler__warmup_epochs": 2,
    "trainer__max_epochs": 26,
    "trainer__max_steps": STEPS,
    "trainer__check_val_every_n_epoch": 26,
}
NO_DROPOUT = {"model__drop_rate": 0, "model__drop_path_rate": 0}
"""CUDA and the CPU draw other masks."""


@pytest.fixture(scope="module")
def losses(toy_overrides: Overrides) -> Callable[..., list[float]]:
    """The loss of each step, by precision and what else is set; what fp32 has lost is kept."""
    kept: dict[str, list[float]] = {}

    def losses(precision: str, accelerator: str = "cpu", **changes: object) -> list[float]:
        key = f"{precision} {accelerator} {changes}"
        if key not in kept:
            settings = toy_overrides(**LEARNABLE, **changes)
            # The configuration refuses fp16 on a CPU, where Lightning has no scaler: here it gets one.
            named = "auto" if accelerator == "cpu" else accelerator
            settings += [f"trainer.precision={precision}", f"trainer.accelerator={named}"]
            config = load_config([], settings).config
            kept[key] = train_in_memory(config, accelerator, scaler=scaler_for(precision, accelerator))
        return kept[key]

    return losses


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_sixteen_bits_learn_as_fp32_does(precision: str, losses: Callable[..., list[float]]) -> None:
    fp32, ours = losses("32-true"), losses(precision)

    assert len(ours) == len(fp32) == STEPS
    assert ours != fp32
    assert ours[0] == pytest.approx(fp32[0], rel=0.05)
    # fp16's first steps are left out until its scale is found. From some step on two roundings are apart; the curves
    # go down together.
    assert means(ours)[0] == pytest.approx(means(fp32)[0], rel=0.15)
    _, apart = distances(ours, fp32)
    assert apart < 0.25
    assert fmean(ours) == pytest.approx(fmean(fp32), rel=0.15)
    assert max(means(ours)[-1], means(fp32)[-1]) < 0.2 * means(fp32)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{"trainer__matmul_precision": each} for each in ("highest", "high", "medium")])
def test_fp32_products_of_fewer_bits_learn_as_fp32_does(
    changes: dict[str, object], losses: Callable[..., list[float]]
) -> None:
    """A CPU has no TF32."""
    _, apart = distances(losses("32-true", "cuda", **changes, **NO_DROPOUT), losses("32-true", "cpu", **NO_DROPOUT))

    assert apart < 0.25


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_sixteen_bits_learn_on_cuda_as_fp32_does_on_the_cpu(precision: str, losses: Callable[..., list[float]]) -> None:
    """Other kernels, and Lightning's own loss scaler."""
    _, apart = distances(losses(precision, "cuda", **NO_DROPOUT), losses("32-true", "cpu", **NO_DROPOUT))

    assert apart < 0.25


def fp16_run(settings: list[str], runs_dir: Path) -> RunDirectory:
    """A run of 16-mixed that has not begun."""
    kept = [setting for setting in settings if not setting.startswith(("trainer.accelerator", "trainer.precision"))]
    return new_run([*kept, "trainer.precision=16-mixed"], runs_dir)


def test_a_resumed_fp16_run_goes_on_with_its_scale(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, with the scaler that Lightning takes on a GPU; it doubles after two steps, and starts at 1,024."""
    built: Callable[..., Trainer] = fit.build_trainer

    def with_scaler(*arguments: Any, **settings: Any) -> Trainer:
        loop = built(*arguments, **settings)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        loop.strategy.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
        return loop

    monkeypatch.setattr(fit, "build_trainer", with_scaler)
    monkeypatch.setattr(fit, "resolve_accelerator", lambda _: "cpu")
    settings = toy_overrides(trainer__max_steps=6, checkpoint__every_n_steps=1, checkpoint__keep_last=9)
    whole = train(fp16_run(settings, tmp_path / "whole"))
    resumed = train(as_killed_after(whole, tmp_path / "again", step=3), attempt=1)

    scales = [checkpoint(whole, step)["MixedPrecision"]["scale"] for step in range(1, 7)]
    assert scales == [2.0**10, 2.0**11, 2.0**11, 2.0**12, 2.0**12, 2.0**13]
    assert checkpoint(resumed, 6)["MixedPrecision"] == checkpoint(whole, 6)["MixedPrecision"]
    assert not changed(weights(whole, 6), weights(resumed, 6))
