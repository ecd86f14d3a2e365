"""Real runs that benchmarks time: a small B0 on shards of photographs, started as a user starts it."""

import json
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from configs.rank_records import signal_name
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


@contextmanager
def running(started: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A process, which is waited for behind the ``with``, and killed where that is left by an error.

    What it prints goes to a file, so that it never waits for who reads it; ``options`` are Popen's.

    Raises:
        RuntimeError: If it fails, with how it ended and what it printed.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        with subprocess.Popen(started, text=True, **streams | options) as process:
            try:
                yield process
                status = process.wait()
            finally:
                process.kill()
        if status:
            output.seek(0)
            how = f"was killed by {signal_name(-status)}" if status < 0 else f"ended with {status}"
            raise RuntimeError(f"{shlex.join(started)} {how}:\n{output.read() or '(it printed nothing)'}")


def finished(run: RunDirectory, overrides: Sequence[str]) -> RunDirectory:
    """Train to the end."""
    with running(command(run, overrides)):
        pass
    return run


def seconds_to_step(started: Sequence[str], run: RunDirectory, *, step: int) -> float:
    """From a process's start until a step's row is in the run's metrics.csv. Waits for its end and removes the run."""
    begin, found = time.perf_counter(), None
    with running(started) as process:
        while found is None and process.poll() is None:
            if step in _steps(run.metrics_file):
                found = time.perf_counter() - begin
            time.sleep(0.002)
    shutil.rmtree(run.path, ignore_errors=True)
    if found is None:
        raise RuntimeError(f"{shlex.join(started)} ended well, but step {step} was not seen in {run.metrics_file}")
    return found


def _steps(metrics: Path) -> list[int]:
    try:
        header, *rows = metrics.read_text().split("\n")[:-1]  # without a row that is half there
    except (FileNotFoundError, ValueError):  # its first line is yet to come
        return []
    column = header.split(",").index("step")
    return [int(row.split(",")[column]) for row in rows]
