"""Which samples each batch of a rank holds: of training by the order, of evaluation each sample of a split once."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from configs.batches import BatchLayout
from datamodules.indexing.index import Int64
from datamodules.streaming.order import TrainingOrder, evaluation_slice


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
