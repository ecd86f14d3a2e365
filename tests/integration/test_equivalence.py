"""The same training whatever the number of processes, the strategy, the workers, and whatever interrupts it."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file

from configs.files import read_json
from configs.run import RunDirectory
from datamodules.images.decoding import open_image
from datamodules.streaming.transforms import evaluation_transform
from tests.integration.runs import final_state, losses, newest, rows, signal_after, start, train
from trainer.checkpoint_files import load_weights
from trainer.export import export

Overrides = Callable[..., list[str]]
STEPS, SIDE = 20, 128
FOUR_MICRO_BATCHES = {
    "data__global_batch_size": 32,  # of 8: two processes accumulate twice, one four times
    "data__image_size": SIDE,  # BatchNorm over more pixels, and small steps: rounding is not amplified
    "optimizer__lr": 0.005,
    "trainer__max_epochs": 6,
    "trainer__max_steps": STEPS,
}


def assert_finds_alike(run: RunDirectory, other: RunDirectory, *, weights: tuple[str, ...], tolerance: float) -> None:
    """Two runs have written the same of their last validations, each prediction with the image of its sample."""
    ours, theirs = (
        {each["weights"]: each for each in read_json(each.path / "validation.json")["results"]} for each in (run, other)
    )
    assert tuple(ours) == weights
    for kind in weights:
        assert ours[kind]["per_class"]["samples"] == theirs[kind]["per_class"]["samples"]
        for which in ("worst", "best"):
            mine, others = ours[kind][which], theirs[kind][which]
            assert [each["loss"] for each in mine] == pytest.approx([each["loss"] for each in others], rel=tolerance)
            assert len(mine) == 3
            for each in mine:
                with tarfile.open(each["shard"]) as shard:
                    contents = shard.extractfile(f"{each['key']}.png")
                    assert contents is not None
                    expected = evaluation_transform(run.load_config().data, SIDE)(open_image(contents.read(), "RGB"))
                with Image.open(run.path / each["picture"]) as picture:
                    off = np.asarray(picture, dtype=float) - expected.permute(1, 2, 0).numpy()
                assert np.abs(off).mean() < 12, each  # a JPEG of noise; between two pictures it is 50


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory, toy_overrides: Overrides) -> RunDirectory:
    """Twenty steps on two gloo processes."""
    return train(
        toy_overrides(trainer__devices=2, tracking__examples=3, **FOUR_MICRO_BATCHES),
        runs_dir=tmp_path_factory.mktemp("runs"),
        run_id="ddp2",
    )


def test_one_process_and_two_train_alike(two_processes: RunDirectory, toy_overrides: Overrides, tmp_path: Path) -> None:
    one = train(toy_overrides(tracking__examples=3, **FOUR_MICRO_BATCHES), runs_dir=tmp_path, run_id="one")

    assert len(losses(one)) == STEPS
    assert losses(one) == pytest.approx(losses(two_processes), abs=1e-4)
    validation = [
        [float(row["val/ema_loss"]) for row in rows(run) if row.get("val/ema_loss")] for run in (one, two_processes)
    ]
    assert len(validation[0]) == 5  # after each epoch, and after the last step
    assert validation[0] == pytest.approx(validation[1], abs=1e-4)
    # BatchNorm's running statistics too, which each rank would keep for itself.
    ours, theirs = final_state(one)["state_dict"], final_state(two_processes)["state_dict"]
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=1e-3)
    assert_finds_alike(one, two_processes, weights=("raw", "ema"), tolerance=1e-3)


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.slow), 3])
def test_deepspeed_trains_like_ddp(
    stage: int, two_processes: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(
        trainer__devices=2,
        **FOUR_MICRO_BATCHES,
        trainer__strategy="deepspeed",
        tracking__examples=3,
        deepspeed__zero_stage=stage,
        ema__enabled=str(stage < 3).lower(),
    )
    zero = train(overrides, runs_dir=tmp_path, run_id="zero")

    assert len(losses(zero)) == STEPS
    assert losses(zero) == pytest.approx(losses(two_processes), abs=1e-3)
    ours, theirs = load_weights(newest(zero)), load_weights(newest(two_processes))
    assert ours.keys() == ({"raw", "ema"} if stage < 3 else {"raw"})
    for kind, weights in ours.items():
        assert weights.keys() == theirs[kind].keys()
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, theirs[kind][name], atol=1e-3, rtol=1e-3, msg=f"{kind} {name}")

    assert_finds_alike(zero, two_processes, weights=("raw", "ema") if stage < 3 else ("raw",), tolerance=1e-2)

    # What lies in parts on the ranks is exported whole.
    export(zero, out_dir=tmp_path / "export", raw=True, console=Console(quiet=True))
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert exported.keys() == ours["raw"].keys()
    assert all(torch.equal(tensor, ours["raw"][name]) for name, tensor in exported.items())

    # Stopped and resumed, it ends the same.
    stopped = RunDirectory(tmp_path / "stopped")
    output = signal_after(process := start(overrides, runs_dir=tmp_path, run_id="stopped"), stopped, step=6)
    assert process.returncode == 85, output
    train(overrides, runs_dir=tmp_path, run_id="stopped")
    resumed = load_weights(newest(stopped))
    for kind, weights in load_weights(newest(zero)).items():
        for name, tensor in weights.items():
            assert torch.equal(tensor, resumed[kind][name]), f"{kind} {name}"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_stopped_by_sigterm_ends_with_the_same_weights(
    num_workers: int, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(data__num_workers=num_workers, trainer__devices=2 if num_workers else 1)
    whole = train(overrides, runs_dir=tmp_path, run_id="whole")

    stopped = RunDirectory(tmp_path / "stopped")
    process = start(overrides, runs_dir=tmp_path, run_id="stopped")
    output = signal_after(process, stopped, step=7 + num_workers)
    assert process.returncode == 85, output
    assert stopped.outcomes()[0]["exit_class"] == "interrupted"
    at = final_state(stopped)["global_step"]
    assert 7 + num_workers <= at < final_state(whole)["global_step"]
    train(overrides, runs_dir=tmp_path, run_id="stopped")

    assert_same(final_state(whole), final_state(stopped))
    assert losses(whole) == losses(stopped)
    assert [row["step"] for row in rows(whole)] == [row["step"] for row in rows(stopped)]


def assert_same(first: dict[str, object], second: dict[str, object]) -> None:
    """Bit for bit: weights, optimizer, average, schedule."""
    for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers", "callbacks"):
        _assert_same(first[key], second[key], key)


def _assert_same(first: object, second: object, where: str) -> None:
    assert type(first) is type(second), where
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), where
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), where
        for key in first:
            _assert_same(first[key], second[key], f"{where}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), where
        for number, (a, b) in enumerate(zip(first, second, strict=True)):
            _assert_same(a, b, f"{where}[{number}]")
    else:
        assert first == second, where
