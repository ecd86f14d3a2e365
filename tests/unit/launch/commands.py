"""Running the command line as a user does: a process of its own, in an empty directory."""

import os
import subprocess
import sys
from pathlib import Path

import typer.main

from launch.cli import app

MINIMAL = ["data.train_shards=train.tar", "data.val_shards=val.tar"]
COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
TIMEOUT_S = 60


def effnet(*arguments: str, cwd: Path, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "launch.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "120", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
