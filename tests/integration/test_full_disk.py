"""A disk that is full: launchers say so in one line, with an exit code to be tried again, and the run stays whole."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.run import RunDirectory
from launch.ledger import Submission, record, submissions
from tests.disks import fill, small_disk
from tests.integration.runs import TIMEOUT_S, last_step, logs, start, train

Overrides = Callable[..., list[str]]


def launched(*arguments: str) -> str:
    """What a launcher says on standard error that ends on a full disk."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_run_that_finds_no_room_goes_on_when_there_is_some(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__max_epochs=300, checkpoint__every_n_steps=2)
    with small_disk(tmp_path / "disk", size_bytes=20_000_000) as disk:
        run, place = RunDirectory(disk / "run"), [f"runs_dir={disk}", "run_id=run"]
        filler = fill(disk)
        no_room = f"error: {run.config_file}: No space left on device\n"
        assert launched("launch.cli", "fit", *overrides, *place) == no_room
        assert sorted(path.name for path in run.path.iterdir()) == [run.lock_file.name]
        filler.unlink()

        training = start(overrides, runs_dir=disk, run_id="run")
        while run.latest_checkpoint() is None:
            assert training.poll() is None, logs(run)
            time.sleep(0.01)
        filler = fill(disk)
        training.terminate()
        output, _ = training.communicate(timeout=TIMEOUT_S)
        assert training.returncode == 1, output
        assert "Traceback" not in output
        assert "SaveFailedError: the checkpoint of step" in output
        last = output.strip().splitlines()[-1]
        assert last.startswith("error: ")
        assert last.endswith(f"and the outcome cannot be written: {run.outcome_file}: No space left on device")

        frozen = run.config_file.read_text()
        assert launched("launch.cli", "fit", *overrides, *place) == no_room
        assert launched("launch.attempt", "begin", str(run.path)).endswith("No space left on device\n")
        ending = ("--attempt=0", "--status=1", "--requeues=0", "--max-requeues=1", "--max-failures=1")
        assert "cannot be written" in launched("launch.attempt", "end", str(run.path), *ending)
        assert run.config_file.read_text() == frozen
        filler.unlink()

        begun, saved = last_step(run), run.latest_checkpoint()
        assert saved is not None
        longer = [*overrides, f"trainer.max_steps={begun + 2}"]
        train(longer, runs_dir=disk, run_id="run")
        assert last_step(run) == begun + 2
        assert f"resumed at step {int(saved.removeprefix('step-'))}" in logs(run)
        assert run.outcomes()[-1]["exit_class"] == "done"


def test_the_ledger_of_jobs_has_a_line_or_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_bytes=1_000_000) as disk:
        run, job = RunDirectory(disk), Submission(time="now", engine="slurm", job_id="1" * 3000, artefact="a")
        run.launch_dir.mkdir()
        record(run, job)
        fill(disk)
        with pytest.raises(OSError, match="No space left"):
            record(run, job)
        assert submissions(run) == [job]
