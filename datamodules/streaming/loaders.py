"""Loaders: webdataset's pipeline behind the source stage, in worker processes."""

import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

import torch
import webdataset as wds
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from configs.lifeline import end_with_parent
from configs.problems import DataError, UnreachableError
from configs.schema import Data
from datamodules.streaming.batch_memory import BatchMemory, small_column
from datamodules.streaming.decode import Decoded
from datamodules.streaming.encoded import EncodedBatch
from datamodules.streaming.plans import EvaluationPlan
from datamodules.streaming.shard_reader import RawSample
from datamodules.streaming.source import ShardSource

_SLOTS_IN_USE = 2
"""Batches of each worker that the training process may be at work on while the next are made."""


class Batch(NamedTuple):
    """What a device takes at once.

    Attributes:
        images: (N, C, H, W) uint8, in memory as (N, H, W, C): torch's channels_last. Of several views of each sample
            (`data.augmentation.aug_splits`) first the clean one of all, then the second of all, and so on.
        targets: (N,) int64, class numbers.
        samples: (N,) int64, numbers of the samples in their split.
        weights: (N,) float32, 1 for a sample, 0 for padding.
        substituted: (N,) bool, whether a sample stands in for one that could not be read.
    """

    images: torch.Tensor
    targets: torch.Tensor
    samples: torch.Tensor
    weights: torch.Tensor
    substituted: torch.Tensor


AnyBatch = Batch | EncodedBatch
"""What workers send: with ``data.decoder=nvjpeg`` the images are still to be decoded."""


class Collate:
    """Stacks decoded samples; a worker does so in memory that it shares with the training process, where there is some.

    Attributes:
        memory: For the images; None allocates anew for each batch.
    """

    def __init__(self, memory: BatchMemory | None = None) -> None:
        self.memory = memory

    def __call__(self, samples: list[Decoded]) -> Batch:
        """Make a batch: in a worker its images are a stand-in until they arrive in the training process."""
        images, *columns = zip(*samples, strict=True)
        if images[0].ndim == 4:
            images = tuple(view for views in zip(*images, strict=True) for view in views)
        return Batch(self._stack(images), *(small_column(column) for column in columns))

    def _stack(self, images: Sequence[torch.Tensor]) -> Any:
        channels, height, width = images[0].shape
        shape = (len(images), height, width, channels)
        size, worker = math.prod(shape), get_worker_info()
        sent: Any = None
        if worker is not None and self.memory is not None and size <= self.memory.slot_bytes:
            taken = self.memory.take(worker.id, shape)
            if taken is not None:
                batch, sent = taken
        if sent is None:
            batch = torch.empty(shape, dtype=torch.uint8)
            sent = batch.permute(0, 3, 1, 2)
        for place, image in zip(batch, images, strict=True):
            place.copy_(image.permute(1, 2, 0))
        return sent


LoaderError = DataError | UnreachableError
"""What ends a loader's batches for a reason that lies outside this process."""


class _ErrorsAsItems(IterableDataset[AnyBatch | LoaderError]):
    """Yields an error of the data's or a server's where another dataset raises it.

    What a worker raises reaches the training process with a traceback for a message; what it yields arrives as it was.
    """

    def __init__(self, dataset: Iterable[AnyBatch]) -> None:
        super().__init__()
        self._dataset = dataset

    def __iter__(self) -> Iterator[AnyBatch | LoaderError]:
        try:
            yield from self._dataset
        except (DataError, UnreachableError) as error:
            yield error


def _in_batches(samples: Iterator[Any], *, size: int, collate: Callable[[list[Any]], AnyBatch]) -> Iterator[AnyBatch]:
    """As wds.batched, which gives a batch only when the sample after it is there: that may be a download away."""
    while batch := list(islice(samples, size)):
        yield collate(batch)


def _raised(items: Iterable[AnyBatch | LoaderError]) -> Iterator[AnyBatch]:
    iterator = iter(items)
    while True:
        try:
            item = next(iterator, None)
        except (ConnectionError, EOFError, FileNotFoundError) as error:
            # What torch meets where it takes a batch from a process that has just been killed.
            raise RuntimeError(f"a worker process of the loader died, perhaps for want of memory ({error})") from error
        if item is None:
            return
        if isinstance(item, LoaderError):
            try:
                raise item
            finally:
                del item  # else error and frame hold each other, and with them the workers, until a garbage collection
        yield item


def make_loader(
    source: ShardSource,
    decode: Callable[[RawSample], Any],
    data: Data,
    *,
    batch_size: int,
    pin_memory: bool,
    image_bytes: int | None = None,
    collate: Callable[[list[Any]], AnyBatch] | None = None,
) -> DataLoader[AnyBatch | LoaderError]:
    """A loader whose batches come in the plan's order. Users' own webdataset stages go between source and batching.

    Args:
        source: Yields raw samples.
        decode: Maps them to decoded ones.
        data: Settings of workers.
        batch_size: Samples of a batch.
        pin_memory: Whether batches are copied to memory that a GPU reads by itself.
        image_bytes: Size of a decoded image, to reserve memory that is used again; None reserves none.
        collate: Makes a batch of samples; None stacks images.
    """
    memory = None
    if data.num_workers and image_bytes is not None:
        slots = data.prefetch_batches + _SLOTS_IN_USE
        memory = BatchMemory(batch_size * image_bytes, workers=data.num_workers, slots_per_worker=slots)
    batched = partial(_in_batches, size=batch_size, collate=collate or Collate(memory))
    pipeline = wds.DataPipeline(source, wds.map(decode), batched)
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {
            "persistent_workers": True,
            "prefetch_factor": data.prefetch_batches,
            "worker_init_fn": partial(start_worker, os.getpid()),
        }
    errors_as_items = _ErrorsAsItems(pipeline)
    return DataLoader(errors_as_items, batch_size=None, num_workers=data.num_workers, pin_memory=pin_memory, **workers)


def start_worker(parent: int, _: int) -> None:
    """Signals are for the training process alone, which still needs its workers to reach the next step.

    But for its own SIGTERM: with that multiprocessing ends what is left of them, and then waits for them for ever.
    They do not outlive it even where it is killed: torch's own check comes every 5 s, and only while they wait.
    """
    end_with_parent(parent)  # not getppid(): it may have been killed since the fork
    for number in (signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_terminated, args=(parent,), daemon=True).start()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # on damaged EXIF data and the like, of which ImageNet has some


def _end_when_terminated(by: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != by:
        pass  # a scheduler's, sent to all processes of the job
    os._exit(0)


class TrainingStream:
    """One endless iterator over a rank's micro-batches: workers run ahead across the seams of epochs.

    Attributes:
        position: Number of the next micro-batch.
        waited_s: Seconds in which the training process has waited for batches.
    """

    def __init__(self, loader: DataLoader[AnyBatch | LoaderError], *, first: int) -> None:
        self.position = first
        self.waited_s = 0.0
        self._iterator = iter(loader)
        self._batches = _raised(self._iterator)

    def take(self, count: int) -> Iterator[AnyBatch]:
        """The next ``count`` micro-batches."""
        for _ in range(count):
            begin = time.monotonic()
            batch = next(self._batches)
            self.waited_s += time.monotonic() - begin
            self.position += 1
            yield batch

    def close(self) -> None:
        """End the worker processes."""
        _shut_down(self._iterator)


class EpochLoader:
    """The rest of one epoch, as Lightning wants it: sized, so that it fetches nothing in advance."""

    def __init__(self, stream: TrainingStream, length: int) -> None:
        self._stream = stream
        self._length = length

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[AnyBatch]:
        return self._stream.take(self._length)


class EvaluationLoader:
    """A rank's batches of a split, sized; its workers outlive an epoch."""

    def __init__(self, loader: DataLoader[AnyBatch | LoaderError], plan: EvaluationPlan) -> None:
        self._loader = loader
        self._length = plan.batches

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[AnyBatch]:
        return _raised(self._loader)

    def close(self) -> None:
        """End the worker processes."""
        _shut_down(self._loader._iterator)


def _shut_down(iterator: object) -> None:
    shut_down_workers = getattr(iterator, "_shutdown_workers", None)
    if shut_down_workers is not None:
        shut_down_workers()
