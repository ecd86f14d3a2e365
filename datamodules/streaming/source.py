"""The source stage: raw samples out of shards, in the order that a plan names. webdataset's stages follow it."""

import copy
import io
import os
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import IterableDataset, get_worker_info

from configs.batches import BatchLayout
from configs.problems import DataError
from datamodules.indexing.index import Int64, ShardIndex
from datamodules.indexing.scan import LASTING_ERRORS, read_members, split_name
from datamodules.indexing.tar import members
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.stats import Stat
from datamodules.storage.traffic import Traffic
from datamodules.streaming.order import TrainingOrder, evaluation_slice
from datamodules.streaming.prefetch import Prefetcher, upcoming

RawSample = dict[str, Any]
"""``__key__``, ``__url__``, ``__index__``, ``__epoch__``, ``__repeat__``, ``__stage__``, ``__label__``,
``__weight__``, and bytes by extension."""
_OPEN_SHARDS = 64
_HEAD_BYTES = 4096
"""More than the headers of most names take."""


@dataclass(frozen=True)
class PlannedBatch:
    """Part of a global batch, or of a split.

    Attributes:
        samples: (batch,), sample numbers.
        epochs: (batch,), their passes over all samples.
        repeats: (batch,), which of its repeats in the global batch each is.
        weights: (batch,), 0 for padding.
        stage: Of training, that all of it is in.
    """

    samples: Int64
    epochs: Int64
    repeats: Int64
    weights: NDArray[np.float32]
    stage: int = 0


class Plan(Protocol):
    """Which samples each of a rank's batches holds."""

    def batch(self, number: int) -> PlannedBatch | None:
        """The batch of that number, or None past the end."""


@dataclass(frozen=True)
class TrainingPlan:
    """A rank's micro-batches, without end. Number k is micro-batch k mod A of optimizer step k div A."""

    order: TrainingOrder
    layout: BatchLayout
    global_rank: int
    stage_ends: tuple[int, ...] = ()
    """Epochs at which the stages end, but for the last."""

    def batch(self, number: int) -> PlannedBatch:
        """Micro-batch ``number`` since the start of the run."""
        step, batch_idx = divmod(number, self.layout.accumulate_grad_batches)
        micro_batch = self.layout.micro_batch(global_rank=self.global_rank, batch_idx=batch_idx)
        slots = self.layout.slots(micro_batch)
        samples, epochs = self.order.batch(step, slots)
        stage = bisect_right(self.stage_ends, self.order.epochs_before(step))
        return PlannedBatch(samples, epochs, self.order.repeat(slots), np.ones(len(samples), dtype=np.float32), stage)


@dataclass(frozen=True)
class EvaluationPlan:
    """A rank's slice of the split, padded with weight 0 so that all ranks have as many batches."""

    samples: int
    batch_size: int
    global_rank: int
    world_size: int

    @property
    def batches(self) -> int:
        """Batches of each rank."""
        _, _, length = evaluation_slice(self.samples, global_rank=0, world_size=self.world_size)
        return -(-length // self.batch_size)

    def batch(self, number: int) -> PlannedBatch | None:
        """Batch ``number`` of this rank."""
        first, last, length = evaluation_slice(self.samples, global_rank=self.global_rank, world_size=self.world_size)
        low = number * self.batch_size
        if low >= length:
            return None
        positions = np.arange(first + low, first + min(low + self.batch_size, length), dtype=np.int64)
        weights = (positions < last).astype(np.float32)
        samples = np.minimum(positions, self.samples - 1)
        return PlannedBatch(samples, np.zeros_like(samples), np.zeros_like(samples), weights)


class ShardReader:
    """Reads samples by number, keeping the files last used open. Remote shards are read in the cache.

    Attributes:
        bytes_read: Of all samples so far.
    """

    def __init__(self, index: ShardIndex, cache: ShardCache | None = None) -> None:
        self.index = index
        self.cache = cache
        self.bytes_read = 0
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, sample: int) -> RawSample:
        """Key, extension and contents of one sample.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        index = self.index
        shard = index.shard_of(sample)
        path, length = index.shards[shard], int(index.sizes[sample])
        data = os.pread(self._file(shard), length, int(index.offsets[sample]))
        if len(data) < length:
            raise DataError(f"{path}: sample {sample} should have {length} bytes, {len(data)} are there")
        self.bytes_read += length
        found = list(read_members(io.BytesIO(data), length=length, source=str(path), whole=False))
        if len(found) != 1:
            raise DataError(f"{path}: the shard is not the one that was indexed (sample {sample})")
        key, group = found[0]
        members = {extension: data[m.data_offset : m.data_offset + m.size] for extension, m in group}
        return members | {
            "__key__": key,
            "__url__": str(path),
            "__index__": sample,
            "__label__": int(index.labels[sample]),
        }

    def key(self, sample: int) -> str:
        """Key of one sample, from the first header of it.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        _, offset, head_bytes = self._head(sample)
        head = os.pread(self._file(self.index.shard_of(sample)), head_bytes, offset)
        return self._key_in(head, sample) or str(self.read(sample)["__key__"])

    def key_alone(self, sample: int) -> str | None:
        """As ``key``, of a remote shard without fetching all of it; None where its name is too long for that.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        shard, offset, head_bytes = self._head(sample)
        if not isinstance(shard, Url):
            return self.key(sample)
        assert self.cache is not None
        head = self.cache.remote.read_part(shard, start=offset, end=offset + head_bytes)
        return self._key_in(head, sample)

    def _head(self, sample: int) -> tuple[Shard, int, int]:
        """A sample's shard, its first byte there, and how many of its bytes have the first header."""
        index = self.index
        shard, length = index.shards[index.shard_of(sample)], int(index.sizes[sample])
        return shard, int(index.offsets[sample]), min(length, _HEAD_BYTES)

    def _key_in(self, head: bytes, sample: int) -> str | None:
        """The key in a sample's first bytes; None for a name that is longer than that."""
        index = self.index
        source, length = str(index.shards[index.shard_of(sample)]), int(index.sizes[sample])
        try:
            first = next(members(io.BytesIO(head), length=length, source=source, whole=False))
        except DataError:
            return None
        return split_name(first.name)[0]

    def give_back(self) -> None:
        """Close remote shards, that others may take their room in the cache.

        A worker whose batches nobody takes yet would hold on to its shards, and the worker that is waited for may need
        the room.
        """
        if self.index.shard_tags:
            self.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_SHARDS:
            self._close_oldest()
        name = self.index.shards[shard]
        self._files[shard] = self._open_remote(shard, name) if isinstance(name, Url) else self._open_local(shard, name)
        return self._files[shard]

    def _close_oldest(self) -> bool:
        if self._files:
            os.close(self._files.popitem(last=False)[1])
            return True
        return False

    def _open_local(self, shard: int, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except LASTING_ERRORS as error:
            raise DataError(f"{path}: {error.strerror}") from error
        if not self.index.fits(shard, os.fstat(descriptor)):
            os.close(descriptor)
            raise DataError(f"{path}: the shard has changed since it was indexed")
        return descriptor

    def _open_remote(self, shard: int, url: Url) -> int:
        assert self.cache is not None
        size, _, tag = self.index.version(shard)
        return self.cache.open(url, Stat(size, tag), give_way=self._close_oldest)


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
