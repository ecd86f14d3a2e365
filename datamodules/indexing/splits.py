"""From the shards of a split to its index, and the cache that remote ones are read through."""

from collections.abc import Callable
from pathlib import Path

from configs.problems import DataError
from configs.schema import Data
from configs.schema.section import Modality
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.opening import open_index
from datamodules.indexing.urls import FoundShards
from datamodules.storage.cache import ShardCache
from datamodules.storage.remote import Remote


def shard_cache(data: Data) -> ShardCache:
    """The cache of remote shards on this node. Nothing is made on disk before it is used."""
    remote = Remote(attempts=data.download_attempts, timeout_s=data.download_timeout_s)
    return ShardCache(folder=Path(data.cache_dir).expanduser(), max_bytes=data.cache_bytes, remote=remote)


def open_split(
    found: FoundShards,
    *,
    cache: ShardCache,
    index_dir: str | None = None,
    rescan: bool = False,
    vouched: bool = False,
    progress: Callable[[int], None] | None = None,
    modality: Modality = "image",
) -> ShardIndex:
    """The index of a split, if it has what lists of its shards say. The arguments are those of ``open_index``.

    Raises:
        DataError: If shards are missing or damaged, or have other numbers of samples than a list says.
        UnreachableError: If a server does not answer.
    """
    index = open_index(
        found.shards,
        index_dir=index_dir,
        cache=cache,
        rescan=rescan,
        vouched=vouched,
        progress=progress,
        modality=modality,
    )
    for shard, samples in zip(index.shards, index.shard_samples.tolist(), strict=True):
        wanted = found.expected.get(shard)
        if wanted is not None and wanted.samples != samples:
            raise DataError(f"{shard}: {samples} samples are in it, but {wanted.source} says {wanted.samples}")
    return index
