"""What a split holds, in figures: counts, class balance, sizes. And random samples of it."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.images.decoding import BadSampleError
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.scan import EXTENSIONS, read_members
from datamodules.inspecting.kinds import KINDS
from datamodules.inspecting.shards import open_shard
from datamodules.storage.cache import ShardCache
from datamodules.storage.stats import Stat
from datamodules.streaming.order import permutation

QUANTILES = (0.0, 0.05, 0.5, 0.95, 1.0)
QUANTILE_NAMES = ("min", "5 %", "median", "95 %", "max")
SAMPLED = 1000
"""That are looked at for the sizes."""
HISTOGRAM_BINS = 8
Int64 = NDArray[np.int64]


class Sample(NamedTuple):
    """A sample taken out of its shard."""

    key: str
    label: int
    contents: bytes
    modality: Modality = "image"


@dataclass(frozen=True, eq=False)
class Survey:
    """Figures of one split.

    Attributes:
        samples: Of all shards.
        shard_samples: (shards,) int64.
        shard_bytes: (shards,) int64.
        class_samples: (classes,) int64, by label.
        figures: By name, (sampled,) int64 each: of images their width and height in pixels.
        sample_bytes: (sampled,) int64, of the image or what is in its place.
        kinds: How many of the sampled are of each format, such as ``JPEG RGB``.
        modality: What the samples are.
    """

    samples: int
    shard_samples: Int64
    shard_bytes: Int64
    class_samples: Int64
    figures: dict[str, Int64]
    sample_bytes: Int64
    kinds: dict[str, int]
    modality: Modality


def survey(index: ShardIndex, *, seed: int, num_classes: int | None, cache: ShardCache | None = None) -> Survey:
    """Count what the index says, and look at a random thousand of samples: of images, at their headers.

    Args:
        index: Of one split.
        seed: Of the random choice.
        num_classes: Classes that there should be, also where no sample has them.
        cache: Through which remote shards are read; needed where there is one.

    Raises:
        DataError: If one of these cannot be read.
        UnreachableError: If a server does not answer.
    """
    samples = list(random_samples(index, SAMPLED, seed=seed, cache=cache))
    described = [_describe(sample) for sample in samples]
    labels = index.labels[index.labels >= 0]
    return Survey(
        samples=len(index),
        shard_samples=index.shard_samples,
        shard_bytes=index.shard_bytes,
        class_samples=np.bincount(labels, minlength=num_classes or 0).astype(np.int64),
        figures={name: np.array([figures[name] for _, figures in described]) for name in described[0][1]},
        sample_bytes=np.array([len(sample.contents) for sample in samples]),
        kinds=dict(Counter(kind for kind, _ in described).most_common()),
        modality=index.modality,
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
            if extension in EXTENSIONS[index.modality]:
                contents = data[member.data_offset : member.data_offset + member.size]
                return Sample(key, label, contents, index.modality)
    raise DataError(f"{path}: no {index.modality} at byte {offset}: the shard has changed since it was indexed")


def _describe(sample: Sample) -> tuple[str, dict[str, int]]:
    try:
        return KINDS[sample.modality].describe(sample.contents)
    except BadSampleError as error:
        raise DataError(f"sample {sample.key}: {error}: effnet shards verify finds all") from None


def quantiles(values: Int64) -> list[int]:
    """The values at QUANTILES, each one of them that occurs."""
    return [int(value) for value in np.quantile(values, QUANTILES, method="nearest")]


def histogram(values: Int64) -> list[tuple[int, int, int]]:
    """Bins of equal width over whole numbers: first and last of each, both inclusive, and how many values it has."""
    low, high = int(values.min()), int(values.max())
    width = -(-(high - low + 1) // HISTOGRAM_BINS)
    counts = np.bincount((values - low) // width)
    return [(low + i * width, min(high, low + (i + 1) * width - 1), int(count)) for i, count in enumerate(counts)]
