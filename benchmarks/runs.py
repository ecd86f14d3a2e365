"""Real runs that benchmarks time: a small B0 on shards of photographs, started as a user starts it."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from configs.run import RunDirectory


def settings(shards: Path, **changes: object) -> list[str]:
    """Overrides for B0 on tiny images, as keyword arguments with two underscores for a dot replace or add to."""
    wanted = {
        "data.train_shards": f"{shards}/imagenet1k-train-*.tar",
        "data.val_shards": f"{shards}/imagenet1k-validation-*.tar",
        "data.global_batch_size": 2,
        "data.micro_batch_size": 1,
        "data.num_lanes": 2,
        "data.num_workers": 0,
        "data.image_size": 64,
        "optimizer.opt": "rmsproptf",
        "scheduler.warmup_epochs": 0,
        "trainer.accelerator": "cpu",
        "trainer.devices": 1,
        "trainer.precision": "32-true",
        "trainer.max_epochs": 10,
        "trainer.check_val_every_n_epoch": 10,
        "trainer.log_every_n_steps": 1,
        "tracking.mode": "disabled",
        **{name.replace("__", "."): value for name, value in changes.items()},
    }
    return [f"{name}={json.dumps(value)}" for name, value in wanted.items()]


def command(run: RunDirectory, overrides: Sequence[str], *verb: str) -> list[str]:
    """`effnet fit`, or another ``verb``, for a run."""
    place = [f"runs_dir={json.dumps(str(run.path.parent))}", f"run_id={run.run_id}"]
    return [sys.executable, "-m", "launch.cli", *(verb or ("fit",)), *overrides, *place]


def finished(run: RunDirectory, overrides: Sequence[str]) -> RunDirectory:
    """Train to the end."""
    done = subprocess.run(command(run, overrides), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{run.path} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return run


def seconds_to_step(started: Sequence[str], run: RunDirectory, *, step: int) -> float:
    """From a process's start until a step's row is in the run's metrics.csv. Waits for its end and removes the run."""
    begin, found = time.perf_counter(), None
    process = subprocess.Popen(started, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while found is None and process.poll() is None:
        if step in _steps(run.metrics_file):
            found = time.perf_counter() - begin
        time.sleep(0.002)
    _, errors = process.communicate()
    shutil.rmtree(run.path, ignore_errors=True)
    if found is None:
        raise RuntimeError(f"{run.path} ended with {process.returncode}: {errors}")
    return found


def _steps(metrics: Path) -> list[int]:
    if not metrics.exists():
        return []
    header, *rows = metrics.read_text().split("\n")[:-1] or [""]  # without a row that is half there
    column = header.split(",").index("step")
    return [int(row.split(",")[column]) for row in rows]
