"""A row's metrics of every machine: processors, memory, disks, network, GPUs. Units: docs/metrics.md.

The first rank of each node measures its machine, each rank its GPU. They travel in the row's own reduction, in a place
for each node and for each rank. W&B's client measures rank 0's machine alone, and nothing where W&B is off.
"""

import math
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch
from pytorch_lightning import Trainer

from trainer.logs import logger
from trainer.processes import Processes

OF_NODE = (
    "cpu_percent",
    "memory_percent",
    "disk_free_gb",
    "cache_free_gb",
    "network_received_mb_per_second",
    "network_sent_mb_per_second",
)
OF_GPU = ("gpu_percent", "gpu_memory_percent", "gpu_temperature_c")
LOW_IS_BAD = ("disk_free_gb", "cache_free_gb", "gpu_percent")
"""Of all others the node with the largest value is the worst."""
MOST_NODES = 8
"""That have a column each."""
_LOOPBACK = ("lo", "lo0")
_NO_ANSWER = (psutil.Error, OSError, RuntimeError)


class NodeMetrics:
    """Measures at each row, about as long as the kernel takes to answer a few questions."""

    def __init__(self, processes: Processes, *, run_dir: Path, cache_dir: Path) -> None:
        """Measure nothing yet.

        Args:
            processes: Where this rank stands; nodes have as many ranks each, in the order of their numbers.
            run_dir: The run's, whose disk checkpoints go to.
            cache_dir: Of remote shards, where there are some.
        """
        self._processes = processes
        self._node = processes.global_rank // processes.local_world_size
        self._run_dir, self._cache_dir = run_dir, cache_dir.expanduser()
        self._free: list[_FreeSpace] = []
        self._network = _Network()

    def start(self, trainer: Trainer) -> None:
        """Measure from here on. Its log says which host it is: rows have numbers."""
        if self._processes.local_rank == 0:
            logger.debug("node %d of %d is %s", self._node, self._processes.num_nodes, socket.gethostname())
            with suppress(*_NO_ANSWER):
                psutil.cpu_percent()
                self._network.rates()
            remote = trainer.datamodule.is_remote  # type: ignore[attr-defined]
            self._free = [_FreeSpace(self._run_dir), _FreeSpace(self._cache_dir if remote else None)]

    def values(self, trainer: Trainer) -> list[float]:
        """This rank's in its places, 0 in those of others."""
        processes = self._processes
        nodes = [0.0] * (processes.num_nodes * len(OF_NODE))
        if processes.local_rank == 0:
            first = self._node * len(OF_NODE)
            nodes[first : first + len(OF_NODE)] = self._of_node()
        device: torch.device = trainer.strategy.root_device
        if device.type != "cuda":
            return nodes
        gpus = [0.0] * (processes.world_size * len(OF_GPU))
        first = processes.global_rank * len(OF_GPU)
        gpus[first : first + len(OF_GPU)] = of_gpu(device)
        return nodes + gpus

    def row(self, trainer: Trainer, sums: Sequence[float]) -> dict[str, float]:
        """Of all nodes: each by itself, or, of many, the extremes."""
        processes = self._processes
        count = processes.num_nodes * len(OF_NODE)
        nodes = [dict(zip(OF_NODE, values, strict=True)) for values in _parts(sums[:count], len(OF_NODE))]
        gpus = [dict(zip(OF_GPU, values, strict=True)) for values in _parts(sums[count:], len(OF_GPU))]
        for number, node in enumerate(nodes if gpus else ()):
            own = gpus[number * processes.local_world_size : (number + 1) * processes.local_world_size]
            node |= {
                "gpu_percent": sum(gpu["gpu_percent"] for gpu in own) / len(own),
                "gpu_memory_percent": max(gpu["gpu_memory_percent"] for gpu in own),
                "gpu_temperature_c": max(gpu["gpu_temperature_c"] for gpu in own),
            }
        return summary(nodes)

    def _of_node(self) -> list[float]:
        free = [each.latest() for each in self._free]
        try:
            return [psutil.cpu_percent(), psutil.virtual_memory().percent, *free, *self._network.rates()]
        except _NO_ANSWER:  # a row is no reason to stop, and the other ranks wait for it
            return [math.nan] * len(OF_NODE)


def summary(nodes: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The columns of a row.

    Args:
        nodes: Of each node, by number, its values by name; NaN stands for what it does not know.
    """
    if len(nodes) <= MOST_NODES:
        return {
            f"system/node{number}/{name}": value
            for number, node in enumerate(nodes)
            for name, value in node.items()
            if not math.isnan(value)
        }
    columns: dict[str, float] = {}
    for name in nodes[0]:
        known = [(node[name], number) for number, node in enumerate(nodes) if not math.isnan(node[name])]
        if known:
            (low, lowest), (high, highest) = min(known), max(known)
            columns |= {
                f"system/{name}_min": low,
                f"system/{name}_mean": sum(value for value, _ in known) / len(known),
                f"system/{name}_max": high,
                f"system/{name}_worst_node": lowest if name in LOW_IS_BAD else highest,
            }
    return columns


def of_gpu(device: torch.device) -> list[float]:
    """`OF_GPU` of a CUDA device; NaN for what needs NVML's Python package, where that is not installed."""
    free, total = torch.cuda.mem_get_info(device)
    return [_nvml(torch.cuda.utilization, device), 100 * (1 - free / total), _nvml(torch.cuda.temperature, device)]


def _nvml(ask: Callable[[torch.device], int], device: torch.device) -> float:
    with suppress(Exception):  # ModuleNotFoundError without it; whatever NVML raises where it may not answer
        return float(ask(device))
    return math.nan


def _parts(values: Sequence[float], size: int) -> list[Sequence[float]]:
    return [values[first : first + size] for first in range(0, len(values), size)]


class _Network:
    """Bytes of all interfaces but loopback, those of other processes included."""

    def __init__(self) -> None:
        self._before = (0.0, 0, 0)

    def rates(self) -> tuple[float, float]:
        """MB/s that came and went since the last call."""
        counters = [each for name, each in psutil.net_io_counters(pernic=True).items() if name not in _LOOPBACK]
        now = (time.monotonic(), sum(each.bytes_recv for each in counters), sum(each.bytes_sent for each in counters))
        (began, *old), (ended, *new) = self._before, now
        self._before = now
        received, sent = ((b - a) / 1e6 / max(ended - began, 1e-9) for a, b in zip(old, new, strict=True))
        return received, sent


class _FreeSpace:
    """Room on the disk of a folder. A thread asks: where a file server hangs, rows have what was known last."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._known = math.nan
        self._asking: threading.Thread | None = None
        self.latest()

    def latest(self) -> float:
        """GB, as the last call has found out; asks again, unless an answer is still awaited. NaN before the first."""
        known = self._known
        if self._folder is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, args=(self._folder,), name="free space", daemon=True)
            self._asking.start()
        return known

    def _ask(self, folder: Path) -> None:
        with suppress(OSError):
            while not folder.exists() and folder != folder.parent:
                folder = folder.parent
            self._known = psutil.disk_usage(str(folder)).free / 1e9
