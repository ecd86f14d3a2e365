"""From a raw sample to the image that goes into a batch, with its label and number."""

from collections.abc import Callable
from typing import Any

import torch

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.images.decoding import BadSampleError
from datamodules.indexing.scan import EXTENSIONS
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.shard_reader import RawSample
from datamodules.streaming.signals import SIGNALS

Transform = Callable[[Any], Any]
"""From what a modality reads to the image, or to what becomes of it later."""

Decoded = tuple[torch.Tensor, int, int, float, bool]
"""Image (C, H, W) uint8, or several views of it (views, C, H, W); label, sample number, weight, and whether it
stands in for another."""


class Decode:
    """Maps a raw sample to an image, and what belongs to it.

    Attributes:
        transforms: What follows decoding, in each stage of training; where there is but one, in all.
        in_chans: 1 reads grey, 3 RGB, 4 RGBA.
        modality: What samples are.
        seed: The run's seed where the transform is random: draws depend on (seed, epoch, sample), and of a sample that
            is repeated in its batch on which of its repeats it is. None otherwise.
    """

    def __init__(
        self,
        *transforms: Transform,
        in_chans: int,
        num_classes: int,
        seed: int | None,
        modality: Modality = "image",
    ) -> None:
        self.transforms = transforms
        self.in_chans = in_chans
        self.modality: Modality = modality
        self.num_classes = num_classes
        self.seed = seed

    def __call__(self, sample: RawSample) -> Decoded:
        """Decode and transform one sample.

        Raises:
            BadSampleError: If it cannot be decoded.
            DataError: If its label is out of range.
        """
        label, number = sample["__label__"], sample["__index__"]
        source = f"{sample['__url__']}: sample {sample['__key__']}"
        if not 0 <= label < self.num_classes:
            raise DataError(f"{source}: label {label}, but data.num_classes is {self.num_classes}")
        extension = next(extension for extension in EXTENSIONS[self.modality] if extension in sample)
        if self.seed is not None:
            repeat = sample["__repeat__"]
            again = (repeat,) if repeat else ()  # without, or the first: as the draws of any run without repeats
            seed_everything(self.seed, AUGMENTATION, sample["__epoch__"], number, *again)
        transform = self.transforms[sample["__stage__"] if len(self.transforms) > 1 else 0]
        try:
            pixels = transform(SIGNALS[self.modality].read(sample[extension], self.in_chans))
        except BadSampleError as error:
            raise BadSampleError(f"{source}.{extension}: {error}") from error
        return pixels, label, number, sample["__weight__"], False
