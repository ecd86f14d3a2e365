"""Fetching remote shards before they are read: the plan says which come next."""

import logging
import threading
from collections.abc import Iterator

import numpy as np

from datamodules.indexing.index import ShardIndex
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Url
from datamodules.storage.stats import Stat
from datamodules.streaming.plans import Plan

logger = logging.getLogger(__name__)
_THREADS = 2
_IDLE_S = 0.2
Visit = tuple[int, int]
"""An epoch, and the number of a shard."""


def upcoming(index: ShardIndex, plan: Plan, *, first: int, stride: int) -> Iterator[Visit]:
    """The shards that batches ``first``, ``first + stride``, … read, in the order in which each is first read."""
    seen: dict[Visit, None] = {}
    number = first
    while (batch := plan.batch(number)) is not None:
        shards = np.searchsorted(index.starts, batch.samples, side="right") - 1
        for visit in zip(batch.epochs.tolist(), shards.tolist(), strict=True):
            if visit not in seen:
                seen[visit] = None
                yield visit
        oldest = int(batch.epochs.min()) - 1
        while seen and next(iter(seen))[0] < oldest:
            del seen[next(iter(seen))]
        number += stride


class Prefetcher:
    """Background threads that fetch shards, at most ``ahead`` of what the reader has reached.

    Each loader process has its own, and those of a rank want nearly the same shards: the cache lets one of them fetch
    each, and keeps all of them together within its bytes. Where it holds little more than is read at once, what one
    fetches ahead may push out what another has fetched but not yet read, which then comes twice.

    Errors are the reader's to meet: it asks for the same shard later.
    """

    def __init__(self, index: ShardIndex, cache: ShardCache, visits: Iterator[Visit], *, ahead: int) -> None:
        self._index = index
        self._cache = cache
        self._visits = visits
        self._ahead = ahead
        self._announced: set[Visit] = set()
        self._reached: set[Visit] = set()
        self._changed = threading.Condition()
        self._closed = False
        for _ in range(min(_THREADS, ahead)):
            threading.Thread(target=self._work, name="prefetch", daemon=True).start()

    def reach(self, epoch: int, shard: int) -> None:
        """Say that the reader is at a shard."""
        visit = (epoch, shard)
        if visit not in self._reached:
            with self._changed:
                self._reached.add(visit)
                self._reached = {known for known in self._reached if known[0] >= epoch - 1}
                # Also what was announced too late, when its epoch was long over: it would count for ever.
                self._announced = {known for known in self._announced - {visit} if known[0] >= epoch - 1}
                self._changed.notify_all()

    def close(self) -> None:
        """Fetch nothing more. What is on its way still arrives in the cache."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _work(self) -> None:
        while (visit := self._next()) is not None:
            url = self._index.shards[visit[1]]
            if not isinstance(url, Url):
                continue
            try:
                size, _, tag = self._index.version(visit[1])
                self._cache.prefetch(url, Stat(size, tag))
            except Exception as error:  # of a disk too, or of a process that is ending: none may end this thread
                logger.debug("%s was not fetched ahead: %s: %s", url, type(error).__name__, error)
                self._wait(_IDLE_S)

    def _next(self) -> Visit | None:
        with self._changed:
            while not self._closed:
                if len(self._announced) >= self._ahead:
                    self._changed.wait()
                    continue
                visit = next(self._visits, None)
                if visit is None or visit not in self._reached:
                    if visit is not None:
                        self._announced.add(visit)
                    return visit
            return None

    def _wait(self, seconds: float) -> None:
        with self._changed:
            self._changed.wait(seconds)
