"""Features of training together, on two processes and under ZeRO: they train as on one, and go on as they were."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.run import RunDirectory
from tests.integration.runs import final_state, losses, newest, rows, signal_after, start, train
from trainer.checkpoint_files import load_weights

Overrides = Callable[..., list[str]]
STEPS = 12
SMALL = {
    "data__global_batch_size": 32,  # of 8: two processes accumulate twice, one four times
    "data__image_size": 96,
    "optimizer__lr": 0.005,
    "trainer__max_epochs": 6,
    "trainer__max_steps": STEPS,
    "trainer__gradient_checkpointing": "true",
}
PLATEAU = {
    "scheduler__sched": "plateau",
    "scheduler__decay_rate": 0.5,
    "scheduler__patience_validations": 0,
    "scheduler__monitor": "val/top1",
    "optimizer__layer_decay": 0.8,
    "loss__name": "bce",
    "loss__bce_target_thresh": 0.2,
    "trainer__gradient_clip_val": 1.0,
}
VIEWS = {
    "loss__name": "jsd",
    "loss__mixup_alpha": 0.0,
    "loss__cutmix_alpha": 0.0,
    "data__augmentation__aug_splits": 3,
    "data__augmentation__auto_augment": "augmix-m3-w3",
    "data__num_workers": 1,
    "trainer__gradient_clip_val": 0.02,
    "trainer__gradient_clip_algorithm": "agc",
}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory, toy_overrides: Overrides) -> RunDirectory:
    """A run of a few steps, by which others are taught."""
    overrides = toy_overrides(**SMALL | {"trainer__max_steps": 2}, model__compound_phi=-9)
    return train(overrides, runs_dir=tmp_path_factory.mktemp("teachers"), run_id="teacher")


@pytest.fixture(scope="module")
def taught(teacher: RunDirectory) -> dict[str, object]:
    return {**SMALL, **PLATEAU, "distillation__teacher": teacher.path, "distillation__temperature": 2.0}


@pytest.fixture(scope="module")
def two_processes(
    tmp_path_factory: pytest.TempPathFactory, toy_overrides: Overrides, taught: dict[str, object]
) -> RunDirectory:
    overrides = toy_overrides(trainer__devices=2, **taught)
    return train(overrides, runs_dir=tmp_path_factory.mktemp("runs"), run_id="ddp2")


def rates(run: RunDirectory) -> list[float]:
    return [float(row["lr"]) for row in rows(run) if row.get("lr")]


def test_bce_plateau_layer_decay_and_a_teacher_on_one_process_and_two(
    two_processes: RunDirectory, toy_overrides: Overrides, taught: dict[str, object], tmp_path: Path
) -> None:
    one = train(toy_overrides(**taught), runs_dir=tmp_path, run_id="one")

    assert len(losses(one)) == STEPS
    assert losses(one) == pytest.approx(losses(two_processes), abs=1e-4)
    assert rates(one) == pytest.approx(rates(two_processes))


@pytest.mark.parametrize("stage", [pytest.param(stage, marks=pytest.mark.slow) for stage in (2, 3)])
def test_they_train_alike_under_zero(
    stage: int, two_processes: RunDirectory, toy_overrides: Overrides, taught: dict[str, object], tmp_path: Path
) -> None:
    overrides = toy_overrides(
        trainer__devices=2,
        **taught,
        trainer__strategy="deepspeed",
        deepspeed__zero_stage=stage,
        ema__enabled="false",
    )
    zero = train(overrides, runs_dir=tmp_path, run_id="zero")

    assert losses(zero) == pytest.approx(losses(two_processes), abs=1e-3)
    assert rates(zero) == pytest.approx(rates(two_processes))

    stopped = RunDirectory(tmp_path / "stopped")
    output = signal_after(process := start(overrides, runs_dir=tmp_path, run_id="stopped"), stopped, step=6)
    assert process.returncode == 85, output
    train(overrides, runs_dir=tmp_path, run_id="stopped")
    whole, resumed = load_weights(newest(zero))["raw"], load_weights(newest(stopped))["raw"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


def test_views_and_agc_on_one_process_and_two(toy_overrides: Overrides, tmp_path: Path) -> None:
    one = train(toy_overrides(**SMALL, **VIEWS), runs_dir=tmp_path, run_id="one")
    two = train(toy_overrides(trainer__devices=2, **SMALL, **VIEWS), runs_dir=tmp_path, run_id="two")

    assert len(losses(one)) == STEPS
    assert losses(one) == pytest.approx(losses(two), abs=1e-3)
    ours, theirs = final_state(one)["state_dict"], final_state(two)["state_dict"]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-3, rtol=1e-3)
