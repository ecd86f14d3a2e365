"""The source stage: raw samples out of shards, in the order that a plan names. webdataset's stages follow it."""

import copy
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

from torch.utils.data import IterableDataset, get_worker_info

from datamodules.indexing.index import ShardIndex
from datamodules.storage.cache import ShardCache
from datamodules.storage.traffic import Traffic
from datamodules.streaming.plans import Plan
from datamodules.streaming.prefetch import Prefetcher, upcoming
from datamodules.streaming.shard_reader import RawSample, ShardReader


class ShardSource(IterableDataset[RawSample]):
    """Yields the samples of a plan's batches from ``first`` on, whole batches at a time.

    Among n workers, worker w takes batches first + w, first + w + n, …: the loader hands batches out in turn, so their
    order is that of the plan for any number of workers.
    """

    def __init__(
        self,
        index: ShardIndex,
        plan: Plan,
        *,
        first: int = 0,
        cache: ShardCache | None = None,
        prefetch_shards: int = 0,
        traffic: Traffic | None = None,
    ) -> None:
        super().__init__()
        self.index = index
        self.plan = plan
        self.first = first
        self.cache = cache
        self.prefetch_shards = prefetch_shards
        self.traffic = traffic

    def __iter__(self) -> Iterator[RawSample]:
        worker = get_worker_info()
        number, stride = (self.first + worker.id, worker.num_workers) if worker else (self.first, 1)
        counter = self.traffic.writer(worker.id if worker else 0) if self.traffic is not None else None
        cache = replace(self.cache, traffic=counter) if self.cache is not None else None
        reader = ShardReader(self.index, cache)
        prefetcher = self._prefetcher(cache, number, stride)
        try:
            while (batch := self.plan.batch(number)) is not None:
                left = len(batch.samples)
                columns = (batch.samples, batch.epochs, batch.repeats, batch.weights)
                for sample, epoch, repeat, weight in zip(*columns, strict=True):
                    if prefetcher is not None:
                        prefetcher.reach(int(epoch), self.index.shard_of(int(sample)))
                    found = reader.read(int(sample))
                    left -= 1
                    if not left:
                        reader.give_back()
                        if counter is not None:
                            counter.add(disk_bytes=reader.bytes_read)
                            reader.bytes_read = 0
                    place = {"__epoch__": int(epoch), "__repeat__": int(repeat), "__stage__": batch.stage}
                    yield found | place | {"__weight__": float(weight)}
                number += stride
        finally:
            reader.close()
            if prefetcher is not None:
                prefetcher.close()

    def neighbours(self, sample: int) -> Iterator[RawSample]:
        """The other samples of a sample's shard, each once: those after it, then those before."""
        shard = self.index.shard_of(sample)
        start, end = int(self.index.starts[shard]), int(self.index.starts[shard + 1])
        with closing(ShardReader(self.index, self.cache)) as reader:
            for number in (*range(sample + 1, end), *range(start, sample)):
                yield reader.read(number)

    def _prefetcher(self, cache: ShardCache | None, first: int, stride: int) -> Prefetcher | None:
        if cache is None or not self.prefetch_shards or not self.index.shard_tags:
            return None
        plan = copy.deepcopy(self.plan)  # it keeps windows, which two threads must not share
        visits = upcoming(self.index, plan, first=first, stride=stride)
        return Prefetcher(self.index, cache, visits, ahead=self.prefetch_shards)
