"""Loaders: webdataset's pipeline behind the source stage, in worker processes."""

import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch.utils.data import DataLoader

from configs.schema import Data
from datamodules.source import EvaluationPlan, ShardSource
from datamodules.transforms import Decode


class Batch(NamedTuple):
    """What a device takes at once.

    Attributes:
        images: (N, C, H, W) uint8.
        targets: (N,) int64, class numbers.
        samples: (N,) int64, numbers of the samples in their split.
        weights: (N,) float32, 1 for a sample, 0 for padding.
    """

    images: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor
    weights: torch.Tensor


def collate(samples: list[tuple[torch.Tensor, int, int, float]]) -> Batch:
    """Stack decoded samples."""
    images, targets, numbers, weights = zip(*samples, strict=True)
    return Batch(torch.stack(images), torch.tensor(targets), torch.tensor(numbers), torch.tensor(weights))


def make_loader(
    source: ShardSource, decode: Decode, data: Data, *, batch_size: int, pin_memory: bool
) -> DataLoader[Batch]:
    """A loader whose batches come in the plan's order. Users' own webdataset stages go between source and batching."""
    pipeline = wds.DataPipeline(source, wds.map(decode), wds.batched(batch_size, collation_fn=collate, partial=True))
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {
            "persistent_workers": True,
            "prefetch_factor": data.prefetch_batches,
            "worker_init_fn": _ignore_signals,
        }
    return DataLoader(pipeline, batch_size=None, num_workers=data.num_workers, pin_memory=pin_memory, **workers)


def _ignore_signals(_: int) -> None:
    """Signals are for the training process alone, which still needs its workers to reach the next step."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)


class TrainingStream:
    """One endless iterator over a rank's micro-batches: workers run ahead across the seams of epochs.

    Attributes:
        position: Number of the next micro-batch.
    """

    def __init__(self, loader: DataLoader[Batch], *, first: int) -> None:
        self.position = first
        self._iterator = iter(loader)

    def take(self, count: int) -> Iterator[Batch]:
        """The next ``count`` micro-batches."""
        for _ in range(count):
            batch = next(self._iterator)
            self.position += 1
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        shutdown = getattr(self._iterator, "_shutdown_workers", None)
        if shutdown is not None:
            shutdown()


class EpochLoader:
    """The rest of one epoch, as Lightning wants it: sized, so that it fetches nothing in advance."""

    def __init__(self, stream: TrainingStream, length: int) -> None:
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return self._stream.take(self._length)


class EvaluationLoader:
    """A rank's batches of a split, sized; its workers outlive an epoch."""

    def __init__(self, loader: DataLoader[Batch], plan: EvaluationPlan) -> None:
        self._loader = loader
        self._length = plan.batches

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader)
