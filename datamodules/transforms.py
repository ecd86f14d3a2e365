"""From a sample's bytes to a uint8 image of the network's size. The transforms are timm's."""

import io
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform

from configs.problems import DataError
from configs.schema import Data
from datamodules.index import IMAGE_EXTENSIONS
from datamodules.randomness import AUGMENTATION, seed_everything
from datamodules.source import RawSample

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
Transform = Callable[[Image.Image], NDArray[np.uint8]]


def training_transform(data: Data, image_size: int) -> Transform:
    """Timm's training transform: PIL image to (C, image_size, image_size) uint8."""
    augmentation = data.augmentation
    transform: Transform = create_transform(
        image_size,
        is_training=True,
        no_aug=not augmentation.enabled,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=augmentation.color_jitter,
        auto_augment=augmentation.auto_augment,
        interpolation=data.interpolation,
        use_prefetcher=True,  # leaves the image in uint8: normalisation is the device's
    )
    return transform


def evaluation_transform(data: Data, image_size: int) -> Transform:
    """Timm's evaluation transform: resize, centre crop; PIL image to (C, image_size, image_size) uint8."""
    transform: Transform = create_transform(
        image_size,
        is_training=False,
        crop_pct=data.crop_pct,
        interpolation="bicubic" if data.interpolation == "random" else data.interpolation,
        use_prefetcher=True,
    )
    return transform


def channel_statistics(data: Data, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations in 0..1 for normalisation, (in_chans,) each; ImageNet's where none are set."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        average = sum(values) / len(values)
        return {1: (average,), 3: values, 4: (*values, average)}[in_chans]

    return data.mean or spread(IMAGENET_DEFAULT_MEAN), data.std or spread(IMAGENET_DEFAULT_STD)


class Decode:
    """Maps a raw sample to (image (C, H, W) uint8, label, sample number, weight).

    Attributes:
        transform: What follows decoding.
        in_chans: 1 reads grey, 3 RGB, 4 RGBA.
        seed: The run's seed where the transform is random: draws depend on (seed, epoch, sample) alone. None otherwise.
    """

    def __init__(self, transform: Transform, *, in_chans: int, num_classes: int, seed: int | None) -> None:
        self.transform = transform
        self.mode = PIL_MODES[in_chans]
        self.num_classes = num_classes
        self.seed = seed

    def __call__(self, sample: RawSample) -> tuple[torch.Tensor, int, int, float]:
        """Decode and transform one sample.

        Raises:
            DataError: If its image cannot be decoded or its label is out of range.
        """
        label, number = sample["__label__"], sample["__index__"]
        source = f"{sample['__url__']}: sample {sample['__key__']}"
        if not 0 <= label < self.num_classes:
            raise DataError(f"{source}: label {label}, but data.num_classes is {self.num_classes}")
        extension = next(extension for extension in IMAGE_EXTENSIONS if extension in sample)
        try:
            image = Image.open(io.BytesIO(sample[extension])).convert(self.mode)
        except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise DataError(f"{source}.{extension}: not a readable image ({error})") from error
        if self.seed is not None:
            seed_everything(self.seed, AUGMENTATION, sample["__epoch__"], number)
        pixels = torch.from_numpy(np.ascontiguousarray(self.transform(image)))
        return pixels, label, number, sample["__weight__"]
