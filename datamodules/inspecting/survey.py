"""What a split holds, in figures: counts, class balance, sizes. And random samples of it."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from configs.problems import DataError
from datamodules.images.decoding import FORMATS, UNREADABLE
from datamodules.images.encode import fault
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.scan import IMAGE_EXTENSIONS, read_members
from datamodules.inspecting.shards import open_shard
from datamodules.storage.cache import ShardCache
from datamodules.storage.stats import Stat
from datamodules.streaming.order import permutation

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
QUANTILE_NAMES = ("min", "5 %", "median", "95 %", "max")
SAMPLED_IMAGES = 1000
"""Whose headers are read for the sizes."""
HISTOGRAM_BINS = 8
Int64 = NDArray[np.int64]


class Sample(NamedTuple):
    """A sample taken out of its shard."""

    key: str
    label: int
    contents: bytes


@dataclass(frozen=True, eq=False)
class Survey:
    """Figures of one split.

    Attributes:
        samples: Of all shards.
        shard_samples: (shards,) int64.
        shard_bytes: (shards,) int64.
        class_samples: (classes,) int64, by label.
        widths: (sampled,) int64, pixels.
        heights: (sampled,) int64, pixels.
        image_bytes: (sampled,) int64.
        kinds: How many of the sampled are of each format and mode, such as ``JPEG RGB``.
    """

    samples: int
    shard_samples: Int64
    shard_bytes: Int64
    class_samples: Int64
    widths: Int64
    heights: Int64
    image_bytes: Int64
    kinds: dict[str, int]


def survey(index: ShardIndex, *, seed: int, num_classes: int | None, cache: ShardCache | None = None) -> Survey:
    """Count what the index says, and read the headers of a random thousand of images.

    Args:
        index: Of one split.
        seed: Of the random choice.
        num_classes: Classes that there should be, also where no sample has them.
        cache: Through which remote shards are read; needed where there is one.

    Raises:
        DataError: If one of these images cannot be read.
        UnreachableError: If a server does not answer.
    """
    images = [(sample, _open(sample)) for sample in random_samples(index, SAMPLED_IMAGES, seed=seed, cache=cache)]
    labels = index.labels[index.labels >= 0]
    return Survey(
        samples=len(index),
        shard_samples=index.shard_samples,
        shard_bytes=index.shard_bytes,
        class_samples=np.bincount(labels, minlength=num_classes or 0).astype(np.int64),
        widths=np.array([image.width for _, image in images]),
        heights=np.array([image.height for _, image in images]),
        image_bytes=np.array([len(sample.contents) for sample, _ in images]),
        kinds=dict(Counter(f"{image.format} {image.mode}" for _, image in images).most_common()),
    )


def random_samples(index: ShardIndex, count: int, *, seed: int, cache: ShardCache | None = None) -> Iterator[Sample]:
    """Samples chosen at random without repeats, in the order of the shards.

    Raises:
        DataError: If one cannot be read.
        UnreachableError: If a server does not answer.
    """
    for number in sorted(permutation(len(index), seed)[:count].tolist()):
        yield _read(index, number, cache)


def _read(index: ShardIndex, number: int, cache: ShardCache | None) -> Sample:
    shard = index.shard_of(number)
    path, version = index.shards[shard], index.version(shard)
    offset, size, label = (int(array[number]) for array in (index.offsets, index.sizes, index.labels))
    with open_shard(path, cache, Stat(version.size, version.tag)) as file:
        file.seek(offset)
        data = file.read(size)
    for key, members in read_members(io.BytesIO(data), length=len(data), source=str(path), whole=False):
        for extension, member in members:
            if extension in IMAGE_EXTENSIONS:
                return Sample(key, label, data[member.data_offset : member.data_offset + member.size])
    raise DataError(f"{path}: no image at byte {offset}: the shard has changed since it was indexed")


def _open(sample: Sample) -> PilImage.Image:
    try:
        return PilImage.open(io.BytesIO(sample.contents), formats=FORMATS)
    except UNREADABLE as error:
        reason = fault(sample.contents, error)
        raise DataError(f"sample {sample.key}: {reason}: effnet shards verify finds all") from None


def quantiles(values: Int64) -> list[int]:
    """The values at QUANTILES, each one of them that occurs."""
    return [int(value) for value in np.quantile(values, QUANTILES, method="nearest")]


def histogram(values: Int64) -> list[tuple[int, int, int]]:
    """Bins of equal width over whole numbers: first and last of each, both inclusive, and how many values it has."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // HISTOGRAM_BINS)
    counts = np.bincount((values - low) // width)
    return [(low + i * width, min(high, low + (i + 1) * width - 1), int(count)) for i, count in enumerate(counts)]
