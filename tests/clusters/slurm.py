"""A real Slurm of virtual nodes on this machine, for as long as a test module needs it."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clusters.turns import alone

TOOL = Path(__file__).parent / "slurm-cluster"
CONFIGURATION = "/tmp/effnet-slurm/slurm.conf"
LOCK = Path("/tmp/effnet-slurm.lock")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
TIMEOUT_S = 240


@contextmanager
def slurm_cluster(nodes: int) -> Iterator[None]:
    """Bring it up, or skip with the reason; take it down with all that it runs."""
    if os.geteuid() != 0:
        pytest.skip("a Slurm of virtual nodes needs root")
    if any(shutil.which(program) is None for program in PROGRAMS) and shutil.which("apt-get") is None:
        pytest.skip("Slurm is not installed, and there is no apt-get to install it")
    with alone(LOCK, "the Slurm"):
        yield from _up(nodes)


def _up(nodes: int) -> Iterator[None]:
    subprocess.run([TOOL, "down"], capture_output=True, timeout=TIMEOUT_S, check=True)  # what a killed suite has left
    up = subprocess.run([TOOL, "up", str(nodes)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if up.returncode:
        subprocess.run([TOOL, "down"], capture_output=True, timeout=TIMEOUT_S, check=False)
        pytest.skip(f"no Slurm can be brought up here: {up.stderr.strip()[-300:]}")
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = CONFIGURATION
    try:
        yield
    finally:
        subprocess.run([TOOL, "down"], capture_output=True, timeout=TIMEOUT_S, check=True)
        os.environ.pop("SLURM_CONF")
        if before is not None:
            os.environ["SLURM_CONF"] = before


def command(*words: str, given: str = "") -> str:
    """Output of a command that must succeed."""
    wide = {**os.environ, "COLUMNS": "250"}
    done = subprocess.run(words, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, env=wide, check=False)
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


def effnet(*arguments: str) -> str:
    """What ``effnet`` printed."""
    return command(sys.executable, "-m", "launch.cli", *arguments)


def job(job_id: str, key: str) -> str:
    """A value of ``scontrol show job``."""
    shown = command("scontrol", "--oneliner", "show", "job", job_id)
    return dict(word.partition("=")[::2] for word in shown.split())[key]


def wait_for(condition: Callable[[], bool], *, what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.02)
