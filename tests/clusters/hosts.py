"""Several hosts on this machine, each with a network of its own that can be cut, for as long as a test needs them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.clusters.turns import alone

TOOL = Path(__file__).parent / "hosts"
LOCK = Path(os.environ.get("EFFNET_HOSTS_DIR", "/tmp/effnet-hosts") + ".lock")
NETWORK = "10.78.0"
TIMEOUT_S = 240


@contextmanager
def hosts(number: int) -> Iterator[None]:
    """Bring up host1, host2, …, or skip with the reason; take them down with all that they run."""
    if os.geteuid() != 0:
        pytest.skip("network namespaces need root")
    if shutil.which("ip") is None and shutil.which("apt-get") is None:
        pytest.skip("ip is not installed, and there is no apt-get to install it")
    with alone(LOCK, "the network of hosts"):
        yield from _up(number)


def _up(number: int) -> Iterator[None]:
    _down()  # what a suite that was killed has left: hosts, some of them cut off
    up = subprocess.run([TOOL, "up", str(number)], capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    if up.returncode:
        _down()
        pytest.skip(f"no network namespaces can be made here: {up.stderr.strip()[-300:]}")
    try:
        yield
    finally:
        _down()


def address(host: int) -> str:
    """IP address of a host."""
    return f"{NETWORK}.{10 + host}"


def on_host(host: int, *command: str) -> list[str]:
    """A command as it is run on a host; its process id and exit status are the command's own."""
    return [str(TOOL), "exec", str(host), *command]


def cut(host: int) -> None:
    """Let no packet through any more, and tell nobody."""
    subprocess.run([TOOL, "cut", str(host)], capture_output=True, timeout=TIMEOUT_S, check=True)


def heal(host: int) -> None:
    """Undo ``cut``."""
    subprocess.run([TOOL, "heal", str(host)], capture_output=True, timeout=TIMEOUT_S, check=True)


def _down() -> None:
    subprocess.run([TOOL, "down"], capture_output=True, timeout=TIMEOUT_S, check=False)


@contextmanager
def slow_link(host: int, *, rate: str) -> Iterator[None]:
    """Let so much through each way, as ``tc`` writes it, such as ``20mbit``; skip where the kernel cannot."""
    ends = [["tc"], on_host(host, "tc")]
    devices = [f"effnet-h{host}", "eth0"]
    limit = ["root", "tbf", "rate", rate, "burst", "64kb", "latency", "400ms"]
    try:
        for end, device in zip(ends, devices, strict=True):
            words = [*end, "qdisc", "replace", "dev", device, *limit]
            done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
            if done.returncode:
                pytest.skip(f"no link can be slowed here: {done.stderr.strip()}")
        yield
    finally:
        for end, device in zip(ends, devices, strict=True):
            words = [*end, "qdisc", "del", "dev", device, "root"]
            subprocess.run(words, capture_output=True, timeout=TIMEOUT_S, check=False)
