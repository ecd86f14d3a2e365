"""A few samples of a split, spread evenly over it, as evaluation or training sees them: for what need not see all."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from configs.schema import Data
from datamodules.indexing.index import Int64
from datamodules.indexing.splits import open_split, shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, make_loader
from datamodules.streaming.plans import PlannedBatch
from datamodules.streaming.signals import SIGNALS
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import Substituting


@dataclass(frozen=True)
class PickedPlan:
    """Samples by number, in batches.

    Attributes:
        samples: (picked,) int64, ascending.
        batch_size: Of all batches but the last.
    """

    samples: Int64
    batch_size: int

    def batch(self, number: int) -> PlannedBatch | None:
        """The batch of that number, or None past the end."""
        picked = self.samples[number * self.batch_size : (number + 1) * self.batch_size]
        if not len(picked):
            return None
        zeros = np.zeros_like(picked)
        return PlannedBatch(picked, zeros, zeros, np.ones(len(picked), dtype=np.float32))


def spread(samples: int, count: int) -> Int64:
    """Numbers of up to ``count`` of ``samples``, evenly spaced: of shards sorted by class, from all of these."""
    count = min(samples, count)
    return np.arange(count, dtype=np.int64) * samples // max(count, 1)


def picked_batches(
    data: Data, shards: str | tuple[str, ...], count: int, *, image_size: int, in_chans: int, seed: int | None = None
) -> Iterator[Batch]:
    """Batches of ``data.eval_batch_size``, cropped as for evaluation and decoded on the CPU. Bad images are replaced.

    With a ``seed`` they are cropped and augmented as in the first epoch of a training by it.

    Args:
        data: Settings of the run.
        shards: The split.
        count: Most samples.
        image_size: Side in pixels.
        in_chans: Channels of an image.
        seed: The run's; None is for evaluation.

    Raises:
        DataError: If shards are missing or damaged.
        UnreachableError: If a server does not answer.
    """
    cache = shard_cache(data)
    found = find_shards(shards, cache.remote)
    index = open_split(found, cache=cache, index_dir=data.index_dir, modality=data.modality)
    plan = PickedPlan(spread(len(index), count), data.eval_batch_size)
    source = ShardSource(index, plan, cache=cache, prefetch_shards=data.prefetch_shards)
    signal = SIGNALS[data.modality]
    transform = (signal.evaluation if seed is None else signal.training)(data, image_size)
    decode = Decode(transform, in_chans=in_chans, num_classes=data.num_classes, seed=seed, modality=data.modality)
    loader = make_loader(source, Substituting(decode, source), data, batch_size=data.eval_batch_size, pin_memory=False)
    for item in loader:
        if not isinstance(item, Batch):
            assert isinstance(item, Exception)
            raise item
        yield item
