"""The index of a split: where each sample lies in which shard, and its label."""

import hashlib
import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from configs.schema.section import Modality
from datamodules.indexing.scan import Scan, Version
from datamodules.storage.locations import Shard

Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All samples of a split, numbered shard after shard in the order of the shards.

    Attributes:
        shards: Paths or URLs of the tar files.
        shard_bytes: (shards,) int64, size of each file.
        shard_mtime_ns: (shards,) int64, modification time of each file in nanoseconds; 0 for a remote one.
        shard_samples: (shards,) int64, samples in each file.
        offsets: (samples,) int64, byte at which a sample's first header begins.
        sizes: (samples,) int64, bytes from there to the end of its last member.
        labels: (samples,) int64, the class; -1 where the sample has none.
        shard_tags: (shards,) what tells a remote file from its other versions; nothing where all are local.
        modality: What every sample has been found to be.
    """

    shards: tuple[Shard, ...]
    shard_bytes: Int64
    shard_mtime_ns: Int64
    shard_samples: Int64
    offsets: Int64
    sizes: Int64
    labels: Int64
    shard_tags: tuple[str, ...] = ()
    modality: Modality = "image"

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def starts(self) -> Int64:
        """(shards + 1,) int64, number of each shard's first sample; the last is the number of samples."""
        return np.concatenate([[0], np.cumsum(self.shard_samples)]).astype(np.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over names, layout and labels: the same wherever the shards are kept."""
        digest = hashlib.sha256()
        for name in self.shards:
            digest.update(name.name.encode("utf-8", "surrogateescape") + b"\0")
        for array in (self.shard_samples, self.offsets, self.sizes, self.labels):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def shard_of(self, sample: int) -> int:
        """Position in ``shards`` of the file that holds a sample."""
        return int(np.searchsorted(self.starts, sample, side="right")) - 1

    def fits(self, shard: int, stat: os.stat_result) -> bool:
        """Whether a file's size and modification time are those of the shard when it was scanned."""
        return (stat.st_size, stat.st_mtime_ns) == (int(self.shard_bytes[shard]), int(self.shard_mtime_ns[shard]))

    def version(self, shard: int) -> Version:
        """What a shard was when it was scanned."""
        tag = self.shard_tags[shard] if self.shard_tags else ""
        return Version(int(self.shard_bytes[shard]), int(self.shard_mtime_ns[shard]), tag)

    def scan(self, shard: int) -> Scan:
        """What the scan of a shard has found."""
        part = slice(int(self.starts[shard]), int(self.starts[shard + 1]))
        offsets, sizes, labels = (array[part].tolist() for array in (self.offsets, self.sizes, self.labels))
        return Scan(self.version(shard), offsets, sizes, labels)
