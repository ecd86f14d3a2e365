"""What a run was made with: versions, host, git state, command line."""

import json
import os
import platform
import socket
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from configs.files import write_atomically
from configs.run import RunDirectory

PACKAGES = (
    "effnet", "torch", "torchvision", "pytorch-lightning", "timm", "webdataset", "wandb", "deepspeed", "numpy", "pillow"
)  # fmt: skip


def git_state(root: Path = Path(__file__).parent.parent) -> tuple[str | None, str]:
    """Commit of the code that runs, and what is changed beside it; (None, "") outside a checkout.

    Bytes that are no UTF-8 stand in the text as surrogates. A job runs a snapshot, which says what it is of.
    """
    record = root / "snapshot.json"
    if record.is_file():
        known = json.loads(record.read_text(encoding="utf-8"))
        return known["git_sha"], known["diff"]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.decode(errors="surrogateescape") if done.returncode == 0 else None

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top.removesuffix("\n")) != root.resolve():
        return None, ""
    commit = git("rev-parse", "HEAD")
    return commit.strip() if commit else None, git("diff", "HEAD") or ""


def record_environment(
    run: RunDirectory, *, attempt: int, world_size: int, resumed_from: Path | None = None
) -> str | None:
    """Add this attempt to ``environment.json`` and keep uncommitted changes beside it; returns the git commit."""
    commit, diff = git_state()
    if diff:
        (run.path / "uncommitted.diff").write_bytes(diff.encode(errors="surrogateescape"))
    entry: dict[str, Any] = {
        "attempt": attempt,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "code": str(Path(__file__).parent.parent),
        "git_sha": commit,
        "uncommitted_changes": bool(diff),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "host": socket.gethostname(),
        "cpus": os.cpu_count(),
        "world_size": world_size,
        "command": sys.orig_argv,
        "resumed_from": str(resumed_from) if resumed_from is not None else None,
    }
    file = run.environment_file
    entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    write_atomically(file, json.dumps([*entries, entry], indent=2) + "\n")
    return commit


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
