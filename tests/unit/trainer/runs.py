"""Training in this process, as `python -m trainer fit` does, and reading what a run left."""

import csv
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from configs.load import load_config
from configs.run import RunDirectory
from tests.wandb_server import WandbServer
from trainer.fit import fit
from trainer.predicting.command import predict
from trainer.processes import Processes
from trainer.signals import StopFlag
from trainer.tracking import sync_command

ALONE = Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)


def new_run(overrides: list[str], runs_dir: Path) -> RunDirectory:
    """A run directory with its frozen configuration."""
    config = load_config([], [*overrides, f"runs_dir={runs_dir}", "run_id=toy"]).config
    run = RunDirectory.of(config)
    run.freeze(config)
    return run


def train(
    run: RunDirectory, *, attempt: int = 0, flag: StopFlag | None = None, console: Console | None = None
) -> RunDirectory:
    """Train to the end, or until ``flag``."""
    console = console or Console(file=io.StringIO())
    fit(run, attempt=attempt, flag=flag or StopFlag(), processes=ALONE, console=console)
    return run


def as_killed_after(run: RunDirectory, runs_dir: Path, *, step: int) -> RunDirectory:
    """A copy of a run without its checkpoints after ``step``, but with all rows of its metrics."""
    copy = RunDirectory(runs_dir / "toy")
    shutil.copytree(run.path, copy.path)
    for path in copy.checkpoints.glob("step-*"):
        if int(path.name.removeprefix("step-")) > step:
            shutil.rmtree(path)
    return copy


def checkpoint(run: RunDirectory, step: int) -> dict[str, Any]:
    """A checkpoint's content."""
    file = run.checkpoints / f"step-{step:09d}" / "checkpoint.ckpt"
    state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    return state


def weights(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    """The raw weights and buffers of the network in a checkpoint."""
    return {name.removeprefix("network."): tensor for name, tensor in checkpoint(run, step)["state_dict"].items()}


def average(run: RunDirectory, step: int) -> dict[str, torch.Tensor]:
    """The averaged weights and buffers in a checkpoint."""
    (found,) = (state["network"] for state in checkpoint(run, step)["callbacks"].values() if "network" in state)
    return dict(found)


def rows(run: RunDirectory) -> list[dict[str, str]]:
    """Metrics, a row each."""
    with run.metrics_file.open(newline="") as file:
        return list(csv.DictReader(file))


def changed(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> set[str]:
    """Names of the tensors that differ by at least a bit."""
    assert first.keys() == second.keys()
    return {name for name in first if not torch.equal(first[name], second[name])}


def predicted(run: RunDirectory, folder: Path, *paths: object, listed: tuple[str, ...] = (), **options: Any) -> str:
    """What ``effnet predict`` prints."""
    inputs = folder / "inputs.json"
    inputs.write_text(json.dumps({"paths": list(map(str, paths)), "listed": listed}))
    output = io.StringIO()
    settings: dict[str, Any] = {"checkpoint": None, "raw": False, "top_k": 2, "batch_size": None}
    settings |= {"out": None, "contact_sheet": None, "processes": ALONE, "console": Console(file=output, width=200)}
    predict(run, inputs=inputs, **settings | options)
    return output.getvalue()


def give(command: str, run: RunDirectory, server: WandbServer) -> None:
    """Give a command that the user is told, as it stands."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    variables = {**os.environ, **server.variables, "PATH": path}
    variables.pop("WANDB_MODE", None)
    done = subprocess.run(command, shell=True, env=variables, cwd=run.path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr


def sync(run: RunDirectory, server: WandbServer) -> None:
    """Send what W&B lacks of a run, as the user is told to."""
    give(sync_command(run), run, server)
