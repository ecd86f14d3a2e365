"""Making an index: what each shard is now, and one scan of the headers of those that are not known."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from configs.schema.section import Modality
from datamodules.indexing.index import Int64, ShardIndex
from datamodules.indexing.journal import Journal
from datamodules.indexing.scan import Version, scan_shards
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url


def build_index(
    shards: Sequence[Shard],
    *,
    reuse: ShardIndex | None = None,
    cache: ShardCache | None = None,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
    modality: Modality = "image",
) -> ShardIndex:
    """Scan shards, several at once.

    Args:
        shards: In the order in which samples are numbered.
        reuse: An older index; its shards that are in the same place and have not changed are not read again.
        cache: Through which remote shards are read; needed where there is one.
        journal: Keeps each scan at once. What it has kept already is used like an older index.
        progress: Called with 1 after each shard.
        modality: What each sample has to be.

    Raises:
        DataError: For a shard that cannot be read.
        UnreachableError: If a server does not answer.
    """
    known = {shard: reuse.scan(i) for i, shard in enumerate(reuse.shards)} if reuse else {}
    known |= journal.scans if journal else {}
    versions = dict(zip(shards, versions_of(shards, cache), strict=True))
    scans = {shard: known[shard] for shard in shards if shard in known and known[shard].version == versions[shard]}
    advance = progress or (lambda _: None)
    for _ in scans:
        advance(1)
    missing = [shard for shard in shards if shard not in scans]
    for shard, scan in scan_shards(missing, versions=versions, cache=cache, modality=modality):
        scans[shard] = scan
        if journal is not None:
            journal.append(shard, scan)
        advance(1)
    in_order = [scans[shard] for shard in shards]

    def column(values: Iterator[Sequence[int]]) -> Int64:
        return np.concatenate([np.asarray(value, dtype=np.int64) for value in values])

    return ShardIndex(
        shards=tuple(shards),
        shard_bytes=np.array([s.version.size for s in in_order], dtype=np.int64),
        shard_mtime_ns=np.array([s.version.mtime_ns for s in in_order], dtype=np.int64),
        shard_samples=np.array([len(s.offsets) for s in in_order], dtype=np.int64),
        offsets=column(s.offsets for s in in_order),
        sizes=column(s.sizes for s in in_order),
        labels=column(s.labels for s in in_order),
        shard_tags=tuple(s.version.tag for s in in_order) if any(isinstance(shard, Url) for shard in shards) else (),
        modality=modality,
    )


def versions_of(
    shards: Sequence[Shard], cache: ShardCache | None, *, vouched: ShardIndex | None = None
) -> list[Version | None]:
    """What each shard is now, or a remote one in ``vouched``, if given; None for a local one that is not there."""
    urls = [shard for shard in shards if isinstance(shard, Url)]
    if urls and cache is None:
        raise ValueError("remote shards are read through a cache")
    remote: dict[Shard, Version] = {}
    if vouched is not None:
        remote = {shard: vouched.version(i) for i, shard in enumerate(vouched.shards)}
    elif urls and cache is not None:
        stats = cache.remote.stat_all(urls)
        remote = {url: Version(stat.size, 0, stat.tag) for url, stat in zip(urls, stats, strict=True)}
    versions: list[Version | None] = []
    for shard in shards:
        if isinstance(shard, Url):
            versions.append(remote[shard])
        else:
            try:
                stat = shard.stat()
                versions.append(Version(stat.st_size, stat.st_mtime_ns, ""))
            except OSError:
                versions.append(None)
    return versions
