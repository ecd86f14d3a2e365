"""Ranks and launchers that fail, in real processes: who ends, how soon, and what is left to read."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from configs.run import RunDirectory
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
