"""Images by number, decoded and cropped as validation does; in place of a bad one's pixels comes the reason."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset

from configs.problems import DataError
from configs.schema import Data
from configs.schema.section import Modality
from datamodules.indexing.scan import EXTENSIONS
from datamodules.indexing.splits import shard_cache
from datamodules.predicting.inputs import Inputs
from datamodules.streaming.loaders import start_worker
from datamodules.streaming.shard_reader import ShardReader
from datamodules.streaming.signals import SIGNALS


class Found(NamedTuple):
    """An image as it lies on disk.

    Attributes:
        name: Path of its file, or shard and key.
        label: That a shard has for it; None where there is none.
        contents: Of its file.
    """

    name: str
    label: int | None
    contents: bytes


class Prepared(NamedTuple):
    """An image for the network, or why there is none.

    Attributes:
        number: In the inputs.
        name: As in Found.
        label: As in Found.
        pixels: (C, H, W) uint8; None if it is bad.
        error: Why it is bad.
    """

    number: int
    name: str
    label: int | None
    pixels: torch.Tensor | None
    error: str | None


class InputImages(Dataset[Prepared]):
    """Images to predict, by number."""

    def __init__(self, inputs: Inputs, data: Data, *, image_size: int, in_chans: int) -> None:
        self.inputs = inputs
        self._data = data
        self._in_chans = in_chans
        self._transform = SIGNALS[data.modality].evaluation(data, image_size)
        self._reader: ShardReader | None = None

    @property
    def modality(self) -> Modality:
        """What they are, if not images."""
        return self._data.modality

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, number: int) -> Prepared:
        name = self._place(number)
        label = None
        try:
            name, label, contents = self.read(number)
            pixels = self.picture(contents)
        except DataError as error:
            return Prepared(number, name, label, None, str(error))
        return Prepared(number, name, label, pixels, None)

    def picture(self, contents: bytes) -> torch.Tensor:
        """What the network sees of a file, (C, H, W) uint8.

        Raises:
            DataError: If it is damaged.
        """
        return self._transform(SIGNALS[self._data.modality].read(contents, self._in_chans))

    def read(self, number: int) -> Found:
        """Read one image's file.

        Raises:
            DataError: If it cannot be read.
        """
        files, index = self.inputs.files, self.inputs.index
        if number < len(files):
            try:
                return Found(str(files[number]), None, files[number].read_bytes())
            except OSError as error:
                raise DataError(error.strerror or str(error)) from None
        assert index is not None
        if self._reader is None:  # opened by the worker that reads: a fork must not share it
            self._reader = ShardReader(index, shard_cache(self._data))
        sample = self._reader.read(number - len(files))
        extension = next(extension for extension in EXTENSIONS[index.modality] if extension in sample)
        label = sample["__label__"] if 0 <= sample["__label__"] < self._data.num_classes else None
        return Found(f"{sample['__url__']}/{sample['__key__']}", label, sample[extension])

    def _place(self, number: int) -> str:
        """Of an image that may not be readable."""
        files, index = self.inputs.files, self.inputs.index
        if number < len(files):
            return str(files[number])
        assert index is not None
        return f"{index.shards[index.shard_of(number - len(files))]}: sample {number - len(files)}"


def input_loader(images: InputImages, batches: Sequence[range], data: Data, *, pin_memory: bool) -> Any:
    """Lists of Prepared, for each of ``batches``, in their order."""
    workers: dict[str, Any] = {}
    if data.num_workers:
        workers = {"prefetch_factor": data.prefetch_batches, "worker_init_fn": partial(start_worker, os.getpid())}
    return DataLoader(
        images,
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=data.num_workers,
        pin_memory=pin_memory,
        collate_fn=list,
        **workers,
    )
