"""Launching over ssh on the hosts of tests.clusters.hosts, and looking at what is there."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from configs.run import RunDirectory

FOLDER = Path(os.environ.get("EFFNET_HOSTS_DIR", "/tmp/effnet-hosts"))
CONFIG = FOLDER / "ssh" / "ssh_config"
TIMEOUT_S = 400


def start(overrides: list[str], *, hosts: int, run: RunDirectory, **variables: str) -> "subprocess.Popen[str]":
    """Start ``effnet launch ssh`` on host1, host2, …"""
    names = ", ".join(f"host{number}" for number in range(1, hosts + 1))
    place = [f"launch.ssh.hosts=[{names}]", f"launch.ssh.config_file={CONFIG}", f"trainer.num_nodes={hosts}"]
    place += [f"runs_dir={json.dumps(str(run.path.parent))}", f"run_id={run.run_id}"]
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "launch", "ssh", *place, *overrides],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **variables},
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    """Exit code, standard output and standard error, waited for."""
    output, errors = process.communicate(timeout=TIMEOUT_S)
    return process.returncode, output, errors


def of_run(run: RunDirectory) -> list[psutil.Process]:
    """All processes of this machine and its pretended hosts that have to do with a run, this one's parents aside."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            said = [*process.cmdline(), *process.environ().values()]
            if process.pid not in own and any(str(run.path) in word for word in said):
                found += [process] if process.status() != psutil.STATUS_ZOMBIE else []
    return found


@contextmanager
def other_view(host: int, place: Path, instead: Path) -> Iterator[None]:
    """On one host, sessions that begin from now on find another folder at a place."""
    namespace = (FOLDER / f"host{host}.sshd").read_text().strip()
    inside = ["nsenter", "--mount", "--target", namespace]
    subprocess.run([*inside, "mount", "--bind", str(instead), str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run([*inside, "umount", str(place)], check=True)
