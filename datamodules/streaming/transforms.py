"""The transforms of training and evaluation, from their settings. What changes colours or turns an image is timm's."""

from collections.abc import Callable

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from torchvision.transforms import InterpolationMode, RandomRotation, TrivialAugmentWide

from configs.schema import Data
from datamodules.images.decoding import EncodedImage
from datamodules.streaming.crops import CenterCrop, PilTransform, RandomCrop

Transform = Callable[[EncodedImage], torch.Tensor]


def training_transform(data: Data, image_size: int) -> RandomCrop | CenterCrop:
    """The training transform: an encoded image to (C, image_size, image_size) uint8."""
    augmentation = data.augmentation
    if not augmentation.enabled:
        interpolation = "bilinear" if data.interpolation == "random" else data.interpolation
        return CenterCrop(image_size, crop_pct=1.0, interpolation=interpolation)
    return RandomCrop(
        image_size,
        augmentation,
        interpolations=("bilinear", "bicubic") if data.interpolation == "random" else (data.interpolation,),
        after=_pil_transforms(data, image_size),
    )


def evaluation_transform(data: Data, image_size: int) -> CenterCrop:
    """The evaluation transform: resize, centre crop; an encoded image to (C, image_size, image_size) uint8."""
    interpolation = "bicubic" if data.interpolation == "random" else data.interpolation
    return CenterCrop(image_size, crop_pct=data.crop_pct, interpolation=interpolation)


def _pil_transforms(data: Data, image_size: int) -> list[PilTransform]:
    augmentation = data.augmentation
    found: list[PilTransform] = []
    if augmentation.rotation:
        found.append(RandomRotation(augmentation.rotation, interpolation=InterpolationMode.BILINEAR))
    trivial = augmentation.auto_augment == "trivial"
    if trivial:
        found.append(TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR))
    _, colours, _ = create_transform(
        image_size,
        is_training=True,
        color_jitter=augmentation.color_jitter,
        auto_augment=None if trivial else augmentation.auto_augment,
        interpolation=data.interpolation,
        use_prefetcher=True,  # leaves the image in uint8: normalisation is the device's
        separate=True,
    )
    return [*found, *colours.transforms]


def channel_statistics(data: Data, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations in 0..1 for normalisation, (in_chans,) each; ImageNet's where none are set."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        average = sum(values) / len(values)
        return {1: (average,), 3: values, 4: (*values, average)}[in_chans]

    return data.mean or spread(IMAGENET_DEFAULT_MEAN), data.std or spread(IMAGENET_DEFAULT_STD)
