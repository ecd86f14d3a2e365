"""Checkpoints that are asked for from outside of training."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.disks import small_disk
from tests.integration.runs import TIMEOUT_S, final_state, logs, losses, start, train, wait_for_step
from tests.integration.test_equivalence import assert_same
from trainer.checkpoint_files import verify

Overrides = Callable[..., list[str]]


def test_a_file_named_stop_ends_a_run_with_a_checkpoint_and_only_once(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__max_epochs=30, trainer__max_steps=120)
    run = RunDirectory(tmp_path / "run")
    process = start(overrides, runs_dir=tmp_path, run_id="run")
    wait_for_step(run, 3, process)
    (run.path / "STOP").touch()
    output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 85, output + logs(run)
    assert 3 <= final_state(run)["global_step"] < 120
    train(overrides, runs_dir=tmp_path, run_id="run")
    whole = train(overrides, runs_dir=tmp_path, run_id="whole")
    assert_same(final_state(whole), final_state(run))


@pytest.mark.parametrize("size_bytes", [12_000_000, 15_000_000])
def test_a_disk_that_is_full_ends_no_zero_run_before_its_end(
    size_bytes: int, toy_overrides: Overrides, tmp_path: Path
) -> None:
    """Whichever of the files of rank 0 alone it is that finds no room: no other rank waits for it."""
    overrides = toy_overrides(
        trainer__strategy="deepspeed",
        deepspeed__zero_stage=2,
        trainer__devices=2,
        trainer__max_steps=4,
        optimizer__opt="adamw",
        checkpoint__every_n_steps=1,
        checkpoint__max_failures=20,
        fault__timeout_s=60,
    )
    with small_disk(tmp_path / "zero" / "checkpoints", size_bytes=size_bytes):
        run = train(overrides, runs_dir=tmp_path, run_id="zero", expected=1)

        assert len(losses(run)) == 4
        assert "SaveFailedError: the checkpoint of step 4 is not where it should be" in run.outcomes()[0]["reason"]
        assert verify(run.checkpoints / "step-000000001") is None
