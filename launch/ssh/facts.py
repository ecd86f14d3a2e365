"""What a host says of itself before it trains: code, versions, devices, clock, what it sees of the run, its network."""

import importlib.metadata
import os
import platform
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import psutil

import launch
from launch.devices import NAMES_A_DEVICE, count_gpus
from launch.snapshot import code_files, code_hash

SEEN_WITHIN_S = 10.0
"""Longest time that shared storage may take to show a new file on another host."""
TIMEOUT_S = 10.0


def facts(*, token_file: Path, work_dir: Path) -> dict[str, Any]:
    """Everything but the network.

    Args:
        token_file: What the launcher has just written to the run directory.
        work_dir: Where ranks begin.
    """
    assert launch.__file__ is not None
    root = Path(launch.__file__).parent.parent
    return {
        "code": str(root),
        "code_hash": code_hash(root, code_files(root)),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "gpus": count_gpus(),
        "busy_gpus": _busy_gpus(),
        "token": _read(token_file),
        "may_write": os.access(token_file.parent, os.W_OK),
        "has_work_dir": work_dir.is_dir(),
        "address": _reached_by(),
        "time": time.time(),
    }


class Listener:
    """Holds the port of the rendezvous, and says a token to who connects, until ranks take its place."""

    def __init__(self, address: str, port: int, token: str) -> None:
        family, _, _, _, place = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM)[0]
        self.nic = nic_with(str(place[0]))
        self._server = socket.create_server(("", port), family=family)
        self.port: int = self._server.getsockname()[1]
        self._token = token
        threading.Thread(target=self._answer, daemon=True).start()

    def close(self) -> None:
        """Free the port."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _answer(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(TIMEOUT_S)
                try:
                    connection.sendall(self._token.encode())
                    connection.recv(1)  # the other side closes first, which leaves the port free here
                except OSError:
                    continue


def reach(address: str, port: int) -> tuple[str, str | None, str]:
    """Connect to the first host; returns this host's own address there, its interface, and what the first host said.

    Raises:
        OSError: If it cannot be reached.
    """
    with socket.create_connection((address, port), timeout=TIMEOUT_S) as connection:
        own = str(connection.getsockname()[0])
        return own, nic_with(own), connection.recv(200).decode("ascii", "replace")


def nic_with(address: str) -> str | None:
    """Name of the network interface that has an address."""
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return None


def _reached_by() -> str | None:
    """The address by which ssh reached this host: the third word of SSH_CONNECTION."""
    words = os.environ.get("SSH_CONNECTION", "").split()
    return words[2] if len(words) == 4 else None


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(file: Path) -> str | None:
    """A file's text, waited for: shared storage may remember for a while that there was none."""
    deadline = time.monotonic() + SEEN_WITHIN_S
    while True:
        try:
            return file.read_text(encoding="utf-8")
        except OSError:
            if time.monotonic() > deadline:
                return None
            time.sleep(0.2)


def _busy_gpus() -> dict[str, str]:
    """Processes at work on GPUs that ranks would have, by the GPU's number."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    allowed = None if visible is None else [name for name in visible.split(",") if NAMES_A_DEVICE.fullmatch(name)]
    uuids = {uuid: number for number, uuid in _asked("--query-gpu=index,uuid")}
    found: dict[str, str] = {}
    for uuid, process in _asked("--query-compute-apps=gpu_uuid,pid"):
        if allowed is None or uuid in allowed or uuids.get(uuid) in allowed:
            found[uuids.get(uuid, uuid)] = process
    return found


def _asked(query: str) -> list[tuple[str, str]]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    command = [tool, query, "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return []
    lines = [line.split(", ") for line in done.stdout.splitlines()] if done.returncode == 0 else []
    return [(words[0], words[1]) for words in lines if len(words) == 2]
