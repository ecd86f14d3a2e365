"""The schedule that goes by validation, in real runs that are killed and go on; and optimizers in such runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.scheduler import PlateauLRScheduler
from torch import nn

from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, checkpoint, new_run, rows, train, weights
from tests.unit.trainer.settings import settings
from trainer.plateau import PlateauScheduler

Overrides = Callable[..., list[str]]
PLATEAU = {
    "scheduler__sched": "plateau",
    "scheduler__decay_rate": 0.5,
    "scheduler__patience_validations": 0,
    "scheduler__warmup_epochs": 0.5,
}


def sgd() -> torch.optim.Optimizer:
    groups = [{"params": [nn.Parameter(torch.zeros(1))]}, {"params": [nn.Parameter(torch.zeros(1))], "lr_scale": 0.1}]
    return torch.optim.SGD(groups, lr=0.4)


def plateau(optimizer: torch.optim.Optimizer, *, warmup_t: float = 0, **changes: Any) -> PlateauScheduler:
    given = PLATEAU | {f"scheduler__{key}": value for key, value in changes.items()}
    return PlateauScheduler(optimizer, settings(**given).scheduler, warmup_t=warmup_t)


@pytest.mark.parametrize(
    ("monitor", "mode", "metrics"),
    [
        (None, "max", [0.1, 0.2, 0.2, 0.2, 0.2, 0.15, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3]),
        ("val/loss", "min", [3.0, 2.0, 2.5, 2.1, 2.0, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9, 1.9]),
    ],
)
@pytest.mark.parametrize("patience", [0, 2])
def test_rates_are_timms_where_a_step_is_an_epoch(
    monitor: str | None, mode: str, metrics: list[float], patience: int
) -> None:
    ours, theirs = sgd(), torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    schedule = plateau(ours, monitor=monitor, patience_validations=patience, min_lr=0.06)
    timms = PlateauLRScheduler(theirs, decay_rate=0.5, patience_t=patience, lr_min=0.06, mode=mode)
    for epoch, metric in enumerate(metrics, start=1):
        schedule.step_update(epoch)
        schedule.validated(metric)
        timms.step(epoch, metric)
        assert ours.param_groups[0]["lr"] == pytest.approx(theirs.param_groups[0]["lr"])
        assert ours.param_groups[1]["lr"] == pytest.approx(0.1 * theirs.param_groups[0]["lr"])
    assert schedule.factor < 0.5


def test_validations_in_the_warm_up_do_not_count() -> None:
    optimizer = sgd()
    schedule = plateau(optimizer, warmup_t=4, warmup_lr=0.0)
    rates = []
    for step in range(6):
        schedule.step_update(step)
        rates.append(optimizer.param_groups[0]["lr"])
        schedule.validated(0.5)

    assert rates == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.4])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.2)


def test_a_state_restores_everything_but_factor_and_patience() -> None:
    schedule = plateau(sgd(), patience_validations=2)
    for step, metric in enumerate([0.5, 0.4, 0.4, 0.4, 0.4], start=1):
        schedule.step_update(step)
        schedule.validated(metric)
    optimizer = sgd()
    other = plateau(optimizer, patience_validations=1)
    other.load_state_dict(schedule.state_dict())

    assert other.state_dict() == schedule.state_dict()
    assert other.factor == 0.5
    other.validated(0.4)  # the second bad one
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.fixture(scope="module")
def lowered(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Five epochs of 8 or 9 steps, in which the rate is lowered."""
    overrides = toy_overrides(
        trainer__max_epochs=5, checkpoint__every_n_steps=1, checkpoint__keep_last=100, optimizer__lr=0.5, **PLATEAU
    )
    return train(new_run(overrides, tmp_path_factory.mktemp("lowered")))


def test_a_run_lowers_its_rate_after_a_validation_without_improvement(lowered: RunDirectory) -> None:
    found = rows(lowered)
    rates = [(int(row["step"]), float(row["lr"])) for row in found if row["lr"]]
    metrics = [(int(row["step"]), float(row["val/ema_top1"])) for row in found if row["val/ema_top1"]]

    best, factor, expected = metrics[0][1], 1.0, {metrics[0][0]: 1.0}
    for step, metric in metrics[1:]:
        improved = metric > best * (1 + 1e-4)
        best, factor = (metric, factor) if improved else (best, factor * 0.5)
        expected[step] = factor
    assert len(metrics) == 5
    assert factor < 1
    for step, rate in rates[5:]:  # after the warm-up of four steps; a row has the rate of the step after
        done = [factor for at, factor in expected.items() if at < step]
        assert rate == pytest.approx(0.5 * (done[-1] if done else 1.0))


@pytest.mark.parametrize("step", [3, 9, 17, 20, 33])
def test_a_run_killed_anywhere_goes_on_with_the_same_rates(lowered: RunDirectory, step: int, tmp_path: Path) -> None:
    resumed = train(as_killed_after(lowered, tmp_path, step=step), attempt=1)

    last = max(int(row["step"]) for row in rows(lowered))
    assert not changed(weights(lowered, last), weights(resumed, last))
    assert checkpoint(resumed, last)["lr_schedulers"] == checkpoint(lowered, last)["lr_schedulers"]


def test_a_run_that_goes_on_with_another_rate_keeps_what_validations_lowered(
    lowered: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    copy = as_killed_after(lowered, tmp_path, step=33)
    factor = checkpoint(copy, 33)["lr_schedulers"][0]["validations"]["factor"]
    changes = {**PLATEAU, "optimizer__lr": 0.1, "resume__allow_changes": "true", "trainer__max_epochs": 5}
    copy.freeze(new_run(toy_overrides(**changes), tmp_path / "other").load_config())
    resumed = train(copy, attempt=1)

    after = [float(row["lr"]) for row in rows(resumed) if row["lr"] and int(row["step"]) == 34]
    assert factor < 1
    assert after[-1] == pytest.approx(0.1 * factor)


# Optimizers of timm with more state than SGD, each in a run of two steps and more


@pytest.mark.parametrize("opt", ["lamb", "lion", "muon", "rmsproptf", "adamw"])
def test_a_run_with_an_optimizer_of_timm_and_layer_decay_resumes_bit_for_bit(
    opt: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    changes = {"optimizer__opt": opt, "optimizer__layer_decay": 0.8, "optimizer__weight_decay": 0.01}
    overrides = toy_overrides(
        trainer__max_steps=4, checkpoint__every_n_steps=1, checkpoint__keep_last=9, optimizer__lr=0.01, **changes
    )
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=2), attempt=1)

    trained = {name for name in weights(run, 1) if name.endswith(("conv_pw.weight", "classifier.weight"))}
    assert trained <= changed(weights(run, 1), weights(run, 2))
    assert all(bool(tensor.isfinite().all()) for tensor in weights(run, 4).values())
    assert not changed(weights(run, 4), weights(resumed, 4))
