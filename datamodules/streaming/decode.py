"""From a raw sample to the image that goes into a batch, with its label and number."""

import torch

from configs.problems import DataError
from datamodules.images.decoding import PIL_MODES, BadSampleError, open_image
from datamodules.indexing.scan import IMAGE_EXTENSIONS
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.source import RawSample
from datamodules.streaming.transforms import Transform

Decoded = tuple[torch.Tensor, int, int, float, bool]
"""Image (C, H, W) uint8, or several views of it (views, C, H, W); label, sample number, weight, and whether it
stands in for another."""


class Decode:
    """Maps a raw sample to an image, and what belongs to it.

    Attributes:
        transforms: What follows decoding, in each stage of training; where there is but one, in all.
        in_chans: 1 reads grey, 3 RGB, 4 RGBA.
        seed: The run's seed where the transform is random: draws depend on (seed, epoch, sample), and of a sample that
            is repeated in its batch on which of its repeats it is. None otherwise.
    """

    def __init__(self, *transforms: Transform, in_chans: int, num_classes: int, seed: int | None) -> None:
        self.transforms = transforms
        self.mode = PIL_MODES[in_chans]
        self.num_classes = num_classes
        self.seed = seed

    def __call__(self, sample: RawSample) -> Decoded:
        """Decode and transform one sample.

        Raises:
            BadSampleError: If its image cannot be decoded.
            DataError: If its label is out of range.
        """
        label, number = sample["__label__"], sample["__index__"]
        source = f"{sample['__url__']}: sample {sample['__key__']}"
        if not 0 <= label < self.num_classes:
            raise DataError(f"{source}: label {label}, but data.num_classes is {self.num_classes}")
        extension = next(extension for extension in IMAGE_EXTENSIONS if extension in sample)
        if self.seed is not None:
            repeat = sample["__repeat__"]
            again = (repeat,) if repeat else ()  # without, or the first: as the draws of any run without repeats
            seed_everything(self.seed, AUGMENTATION, sample["__epoch__"], number, *again)
        transform = self.transforms[sample["__stage__"] if len(self.transforms) > 1 else 0]
        try:
            pixels = transform(open_image(sample[extension], self.mode))
        except BadSampleError as error:
            raise BadSampleError(f"{source}.{extension}: {error}") from error
        return pixels, label, number, sample["__weight__"], False
