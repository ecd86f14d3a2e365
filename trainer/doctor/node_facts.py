"""What a node says of itself before it trains, without asking the others: versions, devices, limits, disks, shards."""

import contextlib
import errno
import os
import platform
import resource
import shutil
import socket
import stat
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from configs.problems import DataError, UnreachableError
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.inspecting.read_rate import read_rate
from datamodules.storage.locations import is_remote
from trainer.doctor.gpu_facts import gpu_facts
from trainer.doctor.needs import MEASURED, images_per_second, room_bytes, shared_memory_bytes
from trainer.processes import Processes

WRITTEN_BYTES = 16 << 20
READ_S = 3.0
INFINIBAND = Path("/sys/class/infiniband")

Facts = dict[str, Any]


def node_facts(config: Config | None, run: RunDirectory | None, processes: Processes) -> Facts:
    """All of it, as JSON can hold it. What cannot be measured says why under ``error``."""
    hardware = gpu_facts()
    cuda = torch.cuda.is_available() and (config is None or config.trainer.accelerator != "cpu")
    facts: Facts = {
        "host": socket.gethostname(),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "CUDA": torch.version.cuda if cuda else None,
            "NCCL": ".".join(
                map(
                    str,
                    torch.cuda.nccl.version(),  # type: ignore[no-untyped-call]
                )
            )
            if cuda
            else None,
            "driver": hardware["driver"],
            "timm": metadata.version("timm"),
        },
        "backend": "nccl" if cuda else "gloo",
        "devices": torch.cuda.device_count() if cuda else 0,
        "gpus": hardware["gpus"] if config is None or config.trainer.accelerator != "cpu" else [],
        "nvlink": hardware["nvlink"],
        "infiniband": INFINIBAND.is_dir() and any(INFINIBAND.iterdir()),
        "limits": {name: _limit(number) for name, number in LIMITS.items()},
        "shm": _disk(Path("/dev/shm"), write=False),
    }
    if config is not None and run is not None:
        facts |= _of_run(config, run, processes, facts["gpus"])
    return facts


LIMITS = {"open files": resource.RLIMIT_NOFILE, "locked memory": resource.RLIMIT_MEMLOCK}


def _of_run(config: Config, run: RunDirectory, processes: Processes, gpus: list[Facts]) -> Facts:
    data, devices = config.data, processes.local_world_size
    shards = (data.train_shards,) if isinstance(data.train_shards, str) else data.train_shards
    remote = any(is_remote(part) for text in shards for part in text.split("::"))
    speed = images_per_second(
        config,
        gpu=gpus[0]["name"] if gpus else None,
        metrics_file=run.metrics_file,
        world_size=processes.world_size,
    )
    return {
        "run_dir": _disk(run.path, write=True),
        "cache": _disk(Path(data.cache_dir).expanduser(), write=True) if remote else None,
        "shards": _shards(config, processes),
        "needs": {
            "room": room_bytes(config, run.checkpoints),
            "shm": shared_memory_bytes(config, devices),
            "images_per_s": None if speed is None else speed[0] * devices,
            "rests_on": None if speed is None else speed[1],
            "has_run": speed is not None and speed[1] == MEASURED,
        },
    }


def _limit(number: int) -> int | None:
    """A limit of this process, in its unit; None is none."""
    soft, _ = resource.getrlimit(number)
    return None if soft == resource.RLIM_INFINITY else soft


def _disk(place: Path, *, write: bool) -> Facts:
    """Free bytes where a folder is or will be, and how fast a file there is written and forced to disk."""
    try:
        existing = _existing(place)
        free = shutil.disk_usage(existing).free
        facts: Facts = {"path": str(place), "free": free}
        if write and free > 2 * WRITTEN_BYTES:
            facts["bytes_per_s"] = _write_rate(existing)
        elif write:
            with tempfile.NamedTemporaryFile(dir=existing, prefix=".effnet-doctor-"):
                pass
    except OSError as error:
        return {"path": str(place), "error": error.strerror or str(error)}
    return facts


def _existing(place: Path) -> Path:
    """The folder, or the nearest above it.

    Raises:
        OSError: If it could not be made there.
    """
    for path in (place, *place.absolute().parents):
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(path.stat().st_mode):
                raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file")
            return path
    raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))


def _write_rate(folder: Path) -> float:
    block = os.urandom(1 << 20)  # a disk that compresses gains nothing
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".effnet-doctor-") as file:
        started = time.monotonic()
        for _ in range(WRITTEN_BYTES // len(block)):
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
        return WRITTEN_BYTES / max(time.monotonic() - started, 1e-6)


def _shards(config: Config, processes: Processes) -> Facts:
    devices = processes.local_world_size
    try:
        rate = read_rate(
            config.data,
            node_rank=processes.global_rank // devices,
            num_nodes=processes.num_nodes,
            readers=devices * max(config.data.num_workers, 1),
            seconds=READ_S,
        )
    except (DataError, UnreachableError) as error:
        made = config.data.prepare is not None and isinstance(error, DataError)
        return {"error": str(error), "passing": isinstance(error, UnreachableError), "made_later": made}
    return rate._asdict()
