"""Batches whose JPEGs workers leave encoded: they read headers and draw what is random, the device makes the pixels.

Whatever a device may refuse or take for other pixels (PNG, CMYK, grey, images that lie on their side, files without an
end) is decoded by the worker, as are the few images that are so large that they would fill the device's memory.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from datamodules.images.decoding import EncodedImage
from datamodules.streaming.batch_memory import small_column
from datamodules.streaming.crops import CenterCrop, Geometry, RandomCrop
from datamodules.streaming.decode import Decoded
from datamodules.streaming.shard_reader import RawSample

MAX_PIXELS = 2**24
"""Of an image that is left to the device: its crop takes 12 bytes a pixel there."""
MAX_SHRINKING = 16
"""Pixels per resized pixel: torch's antialiased kernels run out of shared memory at 47 (bicubic, 48 KiB)."""


class Encoded(NamedTuple):
    """A JPEG file, and what is to become of it."""

    contents: bytes
    geometry: Geometry


class EncodedBatch(NamedTuple):
    """A batch on its way to the device.

    Attributes:
        contents: (bytes,) uint8: of each sample its JPEG file, or its finished (H, W, 3) pixels, end to end.
        lengths: Bytes of each sample.
        geometries: What is to become of each JPEG; None for finished pixels.
        epochs: Of each sample.
        repeats: Of each sample, which of its repeats in the global batch it is.
        stage: Of training, that the batch is in.
        training: Whether it is of the training split.
        targets: As in Batch, like those below.
        samples: See there.
        weights: See there.
        substituted: See there.
    """

    contents: torch.Tensor
    lengths: list[int]
    geometries: list[Geometry | None]
    epochs: list[int]
    repeats: list[int]
    stage: int
    training: bool
    targets: torch.Tensor
    samples: torch.Tensor
    weights: torch.Tensor
    substituted: torch.Tensor


class LeaveEncoded:
    """In place of a transform: draws what it would draw, and leaves to the device the JPEGs that it can decode."""

    def __init__(self, transform: RandomCrop | CenterCrop) -> None:
        self.transform = transform

    def __call__(self, image: EncodedImage) -> Any:
        """An image as Encoded, or as the tensor that the transform makes of it."""
        geometry = self.transform.geometry(image.size)
        if image.plain_jpeg is None or _is_too_large(geometry):
            return self.transform.carry_out(image, geometry)
        return Encoded(image.plain_jpeg, geometry)


class WithPlace:
    """Decodes as ``decode`` does, and adds the sample's epoch, repeat and stage: what it takes to decode it again."""

    def __init__(self, decode: Callable[[RawSample], Decoded]) -> None:
        self.decode = decode

    def __call__(self, sample: RawSample) -> tuple[Any, ...]:
        """The parts of Decoded, the epoch, the repeat, and the stage."""
        return *self.decode(sample), sample["__epoch__"], sample["__repeat__"], sample["__stage__"]


class CollateEncoded:
    """Makes batches of what WithPlace gives. One tensor holds all files: each costs a descriptor on its way."""

    def __init__(self, *, training: bool) -> None:
        self.training = training

    def __call__(self, samples: list[tuple[Any, ...]]) -> EncodedBatch:
        """Make a batch."""
        images, *columns, epochs, repeats, stages = zip(*samples, strict=True)
        contents = [
            image.contents if isinstance(image, Encoded) else image.permute(1, 2, 0).contiguous().numpy().tobytes()
            for image in images
        ]
        return EncodedBatch(
            torch.frombuffer(bytearray().join(contents), dtype=torch.uint8),
            [len(content) for content in contents],
            [image.geometry if isinstance(image, Encoded) else None for image in images],
            list(epochs),
            list(repeats),
            stages[0],
            self.training,
            *(small_column(column) for column in columns),
        )


def _is_too_large(geometry: Geometry) -> bool:
    (width, height), (_, _, *part) = geometry.image_size, geometry.box
    scales = geometry.scales or [length / resized for length, resized in zip(part, geometry.size, strict=True)]
    return width * height > MAX_PIXELS or max(scales) > MAX_SHRINKING
