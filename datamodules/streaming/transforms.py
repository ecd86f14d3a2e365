"""The transforms of training and evaluation, from their settings. What changes colours or turns an image is timm's."""

from typing import Any

from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.auto_augment import posterize
from torchvision.transforms import InterpolationMode, RandomRotation, TrivialAugmentWide

from configs.schema import Data
from configs.schema.section import Modality
from datamodules.streaming.crops import CenterCrop, PilTransform, RandomCrop


def training_transform(data: Data, image_size: int) -> RandomCrop | CenterCrop:
    """The training transform: an encoded image to (C, image_size, image_size) uint8; of views, several."""
    augmentation = data.augmentation
    if not augmentation.enabled:
        interpolation = "bilinear" if data.interpolation == "random" else data.interpolation
        return CenterCrop(image_size, crop_pct=1.0, interpolation=interpolation)
    return RandomCrop(
        image_size,
        augmentation,
        interpolations=("bilinear", "bicubic") if data.interpolation == "random" else (data.interpolation,),
        after=_pil_transforms(data, image_size),
        views=augmentation.aug_splits,
    )


def evaluation_transform(data: Data, image_size: int) -> CenterCrop:
    """The evaluation transform: resize, centre crop; an encoded image to (C, image_size, image_size) uint8."""
    interpolation = "bicubic" if data.interpolation == "random" else data.interpolation
    return CenterCrop(image_size, crop_pct=data.crop_pct, interpolation=interpolation)


def shown_share(data: Data) -> float:
    """The share of a picture's side that evaluation shows: `crop_pct` of images, all of what other modalities draw."""
    return data.crop_pct if data.modality == "image" else 1.0


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
        mean=data.mean or IMAGENET_DEFAULT_MEAN,  # the colour that policies fill with
        use_prefetcher=True,  # leaves the image in uint8: normalisation is the device's
        separate=True,
    )
    for policy in colours.transforms:
        sub_policies = getattr(policy, "policy", [getattr(policy, "ops", ())])
        for operation in (each for sub_policy in sub_policies for each in sub_policy):
            if operation.aug_fn is posterize:
                operation.aug_fn = _posterize
    return [*found, *colours.transforms]


def _posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """timm's, also where a policy keeps no bit, as rand-m9-mstd0.5-inc1 does now and then: that is black.

    Pillow drew it so before it began to refuse 0 bits; now timm's own ends in an error.
    """
    if bits_to_keep <= 0:  # below it with mmax above 10
        return Image.new(image.mode, image.size)
    found: Image.Image = posterize(image, bits_to_keep, **options)
    return found


STATISTICS: dict[Modality, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "image": (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD),
    "text": ((0.1,), (0.23,)),
    "audio": ((0.26,), (0.22,)),
}
"""Means and standard deviations of the channels of each modality's pictures, in 0..1. Those of text were measured on
`datamodules.python_texts`, 12 lines of 24 characters in 96x96; those of audio on `datamodules.spoken_digits`, 48x48."""


def channel_statistics(data: Data, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations in 0..1 for normalisation, (in_chans,) each; the modality's where none are set."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        average = sum(values) / len(values)
        return {1: (average,), 3: values, 4: (*values, average)}[in_chans]

    mean, std = STATISTICS[data.modality]
    return data.mean or spread(mean), data.std or spread(std)
