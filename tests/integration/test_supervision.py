"""Ranks and launchers that fail, in real processes: who ends, how soon, and what is left to read."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.rank_records import HANG
from configs.run import PEER_LOST, RunDirectory, rank_error, rank_log
from tests.integration.runs import TIMEOUT_S, last_step, logs, train

Overrides = Callable[..., list[str]]
SOON_S = 15
"""Far less than any timeout of torch's, and slack for a busy machine."""


def start(overrides: list[str], *options: str, runs_dir: Path, **fault: Any) -> "subprocess.Popen[str]":
    """`effnet fit` of run `faulty`, with a fault from tests/faults.py."""
    spec = runs_dir / "fault.json"
    spec.write_text(json.dumps({"ranks": [1], "steps": 3, "attempts": [0], **fault}))
    command = [sys.executable, "-m", "tests.faults", str(spec), "fit", *options, *overrides]
    command += [f"runs_dir={runs_dir}", "run_id=faulty"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_launcher_that_is_killed_leaves_no_process_and_the_run_goes_on(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    for devices in (1, 2):
        runs_dir = tmp_path / str(devices)
        runs_dir.mkdir()
        run = RunDirectory(runs_dir / "faulty")
        overrides = toy_overrides(
            trainer__devices=devices, trainer__max_steps=8, data__num_workers=1, checkpoint__every_n_steps=1
        )
        launcher = start(overrides, runs_dir=runs_dir, kind="slow", ranks=[0, 1])
        assert wait_for(lambda run=run, launcher=launcher: last_step(run) >= 3 or launcher.poll() is not None)
        assert launcher.poll() is None, (launcher.communicate()[0], logs(run))
        started = psutil.Process(launcher.pid).children(recursive=True)
        # The agent and its ranks with a loader's worker each; or the one rank with its own.
        assert len(started) >= {1: 2, 2: 5}[devices]

        launcher.kill()

        assert wait_for(lambda started=started: not alive(started), timeout_s=SOON_S), alive(started)
        train(overrides, runs_dir=runs_dir, run_id="faulty")
        assert "resumed at step" in run.log_dir(1).joinpath("rank_00000.log").read_text()
        assert last_step(run) == 8


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("error", "RuntimeError: broken on purpose at 0x"),
        ("memory", "MemoryError: Unable to allocate"),
        ("kill", "killed by SIGKILL"),
    ],
)
def test_a_rank_that_dies_ends_the_others_and_is_named(
    kind: str, reason: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "faulty")
    launcher = start(toy_overrides(trainer__devices=2, fault__timeout_s=120), runs_dir=tmp_path, kind=kind)

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 1, output + logs(run)
    (outcome,) = run.outcomes()
    found = (outcome["exit_class"], outcome["rank"], outcome["host"], outcome["step"])
    assert found == ("retry", 1, os.uname().nodename, 3), outcome
    assert outcome["reason"].startswith(reason)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"error: rank 1 ({os.uname().nodename}), step 3: {reason}")
    # Rank 0 was not killed: it heard of it by itself, and that is not taken for the cause.
    survivor = json.loads(rank_error(run.log_dir(0), 0).read_text())
    assert (survivor["error"], survivor["step"]) == (PEER_LOST, 3)


def test_when_no_step_comes_every_rank_shows_where_it_is(toy_overrides: Overrides, tmp_path: Path) -> None:
    """Rank 1 loops in Python, and rank 0 waits in C++ for it."""
    run = RunDirectory(tmp_path / "faulty")
    # The collective's own timeout comes later.
    overrides = toy_overrides(trainer__devices=2, fault__timeout_s=39, fault__hang_timeout_s=20)
    launcher = start(overrides, runs_dir=tmp_path, kind="loop")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 1, output + logs(run)
    (outcome,) = run.outcomes()
    found = (outcome["exit_class"], outcome["error"], outcome["step"])
    assert found == ("retry", HANG, 3), outcome
    assert "no progress in 20 s (fault.hang_timeout_s)" in output.strip().splitlines()[-1]
    assert "in looping_on_purpose" in rank_log(run.log_dir(0), 1).read_text()
    assert "torch/autograd" in rank_log(run.log_dir(0), 0).read_text()


def test_a_rank_that_does_not_end_when_another_has_failed_shows_where_it_is(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    """Rank 0 gives up on its peer before the watchdog would; rank 1 is deaf in C."""
    run = RunDirectory(tmp_path / "faulty")
    launcher = start(toy_overrides(trainer__devices=2, fault__timeout_s=20), runs_dir=tmp_path, kind="wait")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 1, output + logs(run)
    (outcome,) = run.outcomes()
    assert (outcome["rank"], outcome["error"], outcome["step"]) == (1, HANG, 3), outcome
    assert "did not end within 15 s of another rank's failure" in outcome["reason"]
    assert "in waiting_in_c_on_purpose" in rank_log(run.log_dir(0), 1).read_text()
    assert json.loads(rank_error(run.log_dir(0), 0).read_text())["error"] == PEER_LOST
