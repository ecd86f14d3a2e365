"""What loader processes have read, fetched and waited for: counts in memory that they share with the training process.

Each worker has a row of its own, which it alone writes: no process waits for another, and the sums are read without a
lock. A row's threads take turns by a lock of their process.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Counts(NamedTuple):
    """Since the loaders' first sample.

    Attributes:
        network_bytes: That servers have sent of shards, those of attempts that failed included.
        disk_bytes: Read from files of this machine, whether shards or copies in the cache; the system may have had
            them in memory.
        hits: Openings of remote shards whose copy was in the cache.
        misses: Openings that had to fetch the shard, or to wait for who fetched it.
        evictions: Shards removed from the cache to make room.
        waited_s: For shards that were not in the cache.
    """

    network_bytes: float
    disk_bytes: float
    hits: float
    misses: float
    evictions: float
    waited_s: float


class Traffic:
    """The counts of so many workers. Made before they start; goes to them with what they are given."""

    def __init__(self, workers: int) -> None:
        import torch  # not for commands that count nothing

        self._rows = torch.zeros(workers, len(Counts._fields), dtype=torch.float64).share_memory_()  # type: ignore[no-untyped-call]

    def writer(self, worker: int) -> "TrafficWriter":
        """In a worker's process: where it counts. One of an earlier process may have been there before."""
        return TrafficWriter(self._rows[worker].numpy())

    def total(self) -> Counts:
        """Of all workers."""
        return Counts(*self._rows.numpy().sum(0).tolist())


class TrafficWriter:
    """A worker's row, for all threads of its process."""

    def __init__(self, row: NDArray[np.float64]) -> None:
        self._row = row
        self._lock = threading.Lock()

    def add(
        self, *, network_bytes: int = 0, disk_bytes: int = 0, hits: int = 0, misses: int = 0, evictions: int = 0
    ) -> None:
        """Count more."""
        self._add((network_bytes, disk_bytes, hits, misses, evictions, 0.0))

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count a miss, and the time until the shard is there, or known not to come."""
        began = time.monotonic()
        try:
            yield
        finally:
            self._add((0, 0, 0, 1, 0, time.monotonic() - began))

    def _add(self, counts: tuple[float, ...]) -> None:
        with self._lock:
            self._row += counts
