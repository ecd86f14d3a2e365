"""Starting real runs through the command line, and reading what they left."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from configs.run import RunDirectory

TIMEOUT_S = 400


def start(overrides: list[str], *, runs_dir: Path, run_id: str) -> "subprocess.Popen[str]":
    """Start `effnet fit`."""
    command = [sys.executable, "-m", "launch.cli", "fit", *overrides, f"runs_dir={runs_dir}", f"run_id={run_id}"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ.copy())


def train(overrides: list[str], *, runs_dir: Path, run_id: str, expected: int = 0) -> RunDirectory:
    """Run `effnet fit` to its end and check its exit code."""
    process = start(overrides, runs_dir=runs_dir, run_id=run_id)
    output, _ = process.communicate(timeout=TIMEOUT_S)
    run = RunDirectory(runs_dir / run_id)
    assert process.returncode == expected, output + logs(run)
    return run


def refused(process: "subprocess.Popen[str]") -> str:
    """The output of a run that must end with exit code 93."""
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 93, output
    assert "Traceback" not in output
    return output


def signal_after(
    process: "subprocess.Popen[str]", run: RunDirectory, *, step: int, number: signal.Signals = signal.SIGTERM
) -> str:
    """Send a signal once metrics.csv has reached a step; returns the output to the end."""
    wait_for_step(run, step, process)
    process.send_signal(number)
    return process.communicate(timeout=TIMEOUT_S)[0]


def wait_for_step(run: RunDirectory, step: int, *processes: "subprocess.Popen[Any]") -> None:
    """Wait until metrics.csv has reached a step; none of the processes that train may end before."""
    deadline = time.monotonic() + TIMEOUT_S
    while last_step(run) < step:
        for process in processes:
            assert process.poll() is None, (process.communicate()[0], logs(run))
        assert time.monotonic() < deadline, logs(run)
        time.sleep(0.005)


def last_step(run: RunDirectory) -> int:
    return max((int(row["step"]) for row in rows(run) if row["step"]), default=0)


def rows(run: RunDirectory) -> list[dict[str, str]]:
    if not run.metrics_file.exists():
        return []
    with run.metrics_file.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("step")]


def losses(run: RunDirectory) -> list[float]:
    return [float(row["train/loss"]) for row in rows(run) if row.get("train/loss")]


def newest(run: RunDirectory) -> Path:
    """The checkpoint that LATEST names."""
    return run.checkpoints / (run.checkpoints / "LATEST").read_text().strip()


def final_state(run: RunDirectory) -> dict[str, Any]:
    """The newest checkpoint's content."""
    state: dict[str, Any] = torch.load(newest(run) / "checkpoint.ckpt", weights_only=True)
    return state


def logs(run: RunDirectory) -> str:
    return "\n".join(f"--- {path}\n{path.read_text()[-6000:]}" for path in sorted(run.path.glob("logs/*/*.log")))


FAILS_ALIKE = {"optimizer__lr": 1e30, "scheduler__warmup_epochs": 0}
"""The loss of the second step is not finite: with `cannot_say_so`, an error that comes again in each attempt."""


def cannot_say_so(run: RunDirectory) -> RunDirectory:
    """Let a run that diverges fail where it writes that down."""
    run.nonfinite_file.mkdir(parents=True)
    return run
