"""From a sample's bytes to a uint8 image of the network's size.

Decisions are timm's and torchvision's own, drawn in their order from the same generators; so is all that changes
colours or turns an image. Cropping and resizing alone are done here: on the pixels in memory, by torch's antialiased
filters, which compute what Pillow's do in a quarter of the time (measured on 25 November 2026 on one core of an EPYC,
crops of 500x375 to 224, bicubic: 0.24 ms, Pillow 1.17, OpenCV's area filter 0.51; mean difference from Pillow 0.1 grey
levels). Images are (C, H, W) uint8 tensors that lie in memory as (H, W, C).
"""

import math
import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision.transforms import InterpolationMode, RandomRotation, TrivialAugmentWide

from configs.problems import DataError
from configs.schema import Augmentation, Data
from datamodules.images.decoding import DIVISORS, PIL_MODES, BadSampleError, EncodedImage, open_image
from datamodules.images.jpeg import Box
from datamodules.indexing.scan import IMAGE_EXTENSIONS
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.source import RawSample

Transform = Callable[[EncodedImage], torch.Tensor]
Decoded = tuple[torch.Tensor, int, int, float, bool]
"""Image (C, H, W) uint8, label, sample number, weight, and whether it stands in for another."""
_PilTransform = Callable[[Image.Image], Image.Image]
FILTERS = {
    "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
    "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
}
_REACH = {"bilinear": 1, "bicubic": 2}
"""Half the width of a filter, in pixels of the smaller of both images."""
_PHASES, _CLOSE = 128, 0.01


class Geometry(NamedTuple):
    """What becomes of an image of known size up to flipping, with all that is random in it drawn.

    Attributes:
        image_size: Width and height of the image.
        box: The part of it that is resized.
        size: Height and width that it is resized to.
        interpolation: ``bilinear`` or ``bicubic``.
        scales: Pixels per resized pixel in each direction, where not the box decides.
        skipped: Rows at the top and columns at the left that are then cut off.
        flips: Axes of (C, H, W) that are then reversed.
    """

    image_size: tuple[int, int]
    box: Box
    size: tuple[int, int]
    interpolation: str
    scales: tuple[float, float] | None = None
    skipped: tuple[int, int] = (0, 0)
    flips: tuple[int, ...] = ()

    def finish(self, resized: torch.Tensor) -> torch.Tensor:
        """Cut and flip what was resized, (C, *size) of any device."""
        top, left = self.skipped
        found = resized[:, top:, left:]
        return found.flip(self.flips) if self.flips else found


def training_transform(data: Data, image_size: int) -> "RandomCrop | CenterCrop":
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


def evaluation_transform(data: Data, image_size: int) -> "CenterCrop":
    """The evaluation transform: resize, centre crop; an encoded image to (C, image_size, image_size) uint8."""
    interpolation = "bicubic" if data.interpolation == "random" else data.interpolation
    return CenterCrop(image_size, crop_pct=data.crop_pct, interpolation=interpolation)


class RandomCrop:
    """Random crop, resize and flip, then what changes colours or turns the image, on Pillow's images.

    Draws what timm's RandomResizedCropAndInterpolation and torchvision's RandomHorizontalFlip draw. Where the crop is
    several times larger than the output, a JPEG is decoded to a half, a quarter or an eighth of its size.
    """

    def __init__(
        self,
        image_size: int,
        augmentation: Augmentation,
        *,
        interpolations: Sequence[str],
        after: Sequence[_PilTransform] = (),
    ) -> None:
        self.image_size = image_size
        self.augmentation = augmentation
        self.interpolations = interpolations
        self.after = after

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        """One image of a training batch."""
        return self.carry_out(image, self.geometry(image.size))

    def geometry(self, image_size: tuple[int, int]) -> Geometry:
        """Draw crop, interpolation and flips for an image of that width and height."""
        augmentation = self.augmentation
        width, height = image_size
        whole = torch.empty(1, 1, 1).expand(1, height, width)  # of which only the size is read
        box = RandomResizedCropAndInterpolation.get_params(whole, augmentation.scale, augmentation.ratio)
        several = len(self.interpolations) > 1
        interpolation = random.choice(self.interpolations) if several else self.interpolations[0]
        chances = ((-1, augmentation.hflip), (-2, augmentation.vflip))
        flips = tuple(axis for axis, p in chances if p and torch.rand(1) < p)
        return Geometry(image_size, box, (self.image_size, self.image_size), interpolation, flips=flips)

    def carry_out(self, image: EncodedImage, geometry: Geometry) -> torch.Tensor:
        """Decode, crop, resize and flip as was drawn; then draw and apply what changes colours or turns the image."""
        _, _, rows, columns = geometry.box
        divisor = next(n for n in DIVISORS if n == 1 or min(rows, columns) >= 2 * n * self.image_size)
        crop = torch.from_numpy(image.pixels(geometry.box, divisor))
        found = geometry.finish(resize(crop, geometry.size, geometry.interpolation))
        return _through_pillow(found, self.after) if self.after else found


class CenterCrop:
    """Resize so that the crop is ``crop_pct`` of the short side, and cut the crop out of the middle.

    The same rounding as torchvision's Resize and CenterCrop, which timm builds for evaluation. What would be cut off
    after resizing is cut off before: an extremely long image takes no more memory than a square one.
    """

    def __init__(self, image_size: int, *, crop_pct: float, interpolation: str) -> None:
        self.image_size = image_size
        self.resized_side = math.floor(image_size / crop_pct)
        self.interpolation = interpolation

    def __call__(self, image: EncodedImage) -> torch.Tensor:
        """One image of an evaluation batch."""
        return self.carry_out(image, self.geometry(image.size))

    def geometry(self, image_size: tuple[int, int]) -> Geometry:
        """Which part of an image of that width and height is needed, and what size it gets."""
        width, height = image_size
        short = min(width, height)
        reach = _REACH[self.interpolation]
        rows, columns = (
            _Window.of(length, self.resized_side * length // short, self.image_size, reach)
            for length in (height, width)
        )
        box = (rows.first, columns.first, rows.last - rows.first, columns.last - columns.first)
        return Geometry(
            image_size,
            box,
            (rows.skipped + self.image_size, columns.skipped + self.image_size),
            self.interpolation,
            scales=(rows.scale, columns.scale),
            skipped=(rows.skipped, columns.skipped),
        )

    def carry_out(self, image: EncodedImage, geometry: Geometry) -> torch.Tensor:
        """Decode, resize and cut."""
        part = torch.from_numpy(image.pixels(geometry.box))
        return geometry.finish(resize(part, geometry.size, geometry.interpolation, scales=geometry.scales))


class _Window(NamedTuple):
    """The part of an axis that a centre crop of its resized self is computed from.

    Attributes:
        first: First pixel of the part.
        last: Pixel after its last.
        skipped: Resized pixels of the part before the crop begins.
        scale: Pixels per resized pixel.
    """

    first: int
    last: int
    skipped: int
    scale: float

    @classmethod
    def of(cls, length: int, resized: int, crop: int, reach: int) -> "_Window":
        """The part begins where a resized pixel begins, and leaves room for the filter before the crop.

        Of the resized pixels far enough ahead it is the last that begins within a small fraction of a whole pixel.
        """
        start, scale = round((resized - crop) / 2), length / resized
        margin = math.ceil(reach * max(scale, 1)) + 1
        latest = max(math.floor((start * scale - margin) / scale), 0)
        ahead = range(latest, max(latest - max(_PHASES, math.ceil(1 / scale)), 0) - 1, -1)
        off = [abs(at * scale - round(at * scale)) for at in ahead]
        begin = next((at for at, error in zip(ahead, off, strict=True) if error < _CLOSE), ahead[int(np.argmin(off))])
        return cls(
            first=round(begin * scale),
            last=min(length, math.ceil((start + crop) * scale) + margin),
            skipped=start - begin,
            scale=scale,
        )


def resize(
    pixels: torch.Tensor, size: tuple[int, int], interpolation: str, *, scales: tuple[float, float] | None = None
) -> torch.Tensor:
    """Antialiased resizing, as Pillow's.

    Args:
        pixels: (height, width, C) uint8.
        size: Height and width to come.
        interpolation: ``bilinear`` or ``bicubic``.
        scales: Pixels per resized pixel in each direction, where the pixels are part of a larger image.

    Returns:
        (C, *size) uint8.
    """
    transparent = pixels.shape[2] == 4 and int(pixels[..., 3].min()) < 255
    if transparent:
        pixels = torch.from_numpy(np.array(Image.fromarray(pixels.contiguous().numpy()).convert("RGBa")))
    vertical, horizontal = (1 / scale for scale in scales) if scales is not None else (None, None)
    found: torch.Tensor = FILTERS[interpolation](
        pixels.unsqueeze(0).permute(0, 3, 1, 2), size, False, vertical, horizontal
    ).squeeze(0)
    if transparent:
        resized = found.permute(1, 2, 0).contiguous().numpy()
        image = Image.frombytes("RGBa", size[::-1], resized.tobytes()).convert("RGBA")
        found = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    return found


def _pil_transforms(data: Data, image_size: int) -> list[_PilTransform]:
    augmentation = data.augmentation
    found: list[_PilTransform] = []
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


def _through_pillow(pixels: torch.Tensor, transforms: Sequence[_PilTransform]) -> torch.Tensor:
    array = pixels.permute(1, 2, 0).contiguous().numpy()
    image = Image.fromarray(array if array.shape[2] > 1 else array[..., 0])
    for transform in transforms:
        image = transform(image)
    return torch.from_numpy(np.array(image)).view(image.height, image.width, -1).permute(2, 0, 1)


def channel_statistics(data: Data, in_chans: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Means and standard deviations in 0..1 for normalisation, (in_chans,) each; ImageNet's where none are set."""

    def spread(values: tuple[float, ...]) -> tuple[float, ...]:
        average = sum(values) / len(values)
        return {1: (average,), 3: values, 4: (*values, average)}[in_chans]

    return data.mean or spread(IMAGENET_DEFAULT_MEAN), data.std or spread(IMAGENET_DEFAULT_STD)


class Decode:
    """Maps a raw sample to an image, and what belongs to it.

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
            seed_everything(self.seed, AUGMENTATION, sample["__epoch__"], number)
        try:
            pixels = self.transform(open_image(sample[extension], self.mode))
        except BadSampleError as error:
            raise BadSampleError(f"{source}.{extension}: {error}") from error
        return pixels, label, number, sample["__weight__"], False
