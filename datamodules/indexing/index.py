"""The index of a split: where each sample lies in which shard, and its label. Made by one scan of the headers.

Kept as one compact binary file (a few arrays in NumPy's format, never pickled), it is checked against size and
modification time of every shard, or the server's tag; shards that changed are scanned again.
"""

import hashlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from datamodules.indexing.journal import Journal
from datamodules.indexing.scan import Scan, Version, scan_shards
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.locks import NO_LOCKS, file_lock

FORMAT_VERSION = 1
_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What np.load raises for a file that is not whole, or not an archive of arrays."""
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
    """

    shards: tuple[Shard, ...]
    shard_bytes: Int64
    shard_mtime_ns: Int64
    shard_samples: Int64
    offsets: Int64
    sizes: Int64
    labels: Int64
    shard_tags: tuple[str, ...] = ()

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


def build_index(
    shards: Sequence[Shard],
    *,
    reuse: ShardIndex | None = None,
    cache: ShardCache | None = None,
    journal: Journal | None = None,
    progress: Callable[[int], None] | None = None,
) -> ShardIndex:
    """Scan shards, several at once.

    Args:
        shards: In the order in which samples are numbered.
        reuse: An older index; its shards that are in the same place and have not changed are not read again.
        cache: Through which remote shards are read; needed where there is one.
        journal: Keeps each scan at once. What it has kept already is used like an older index.
        progress: Called with 1 after each shard.

    Raises:
        DataError: For a shard that cannot be read.
        UnreachableError: If a server does not answer.
    """
    known = {shard: reuse.scan(i) for i, shard in enumerate(reuse.shards)} if reuse else {}
    known |= journal.scans if journal else {}
    versions = dict(zip(shards, _versions(shards, cache), strict=True))
    scans = {shard: known[shard] for shard in shards if shard in known and known[shard].version == versions[shard]}
    advance = progress or (lambda _: None)
    for _ in scans:
        advance(1)
    missing = [shard for shard in shards if shard not in scans]
    for shard, scan in scan_shards(missing, versions=versions, cache=cache):
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
    )


def index_file(shards: Sequence[Shard], index_dir: str | None) -> Path:
    """Where the index of these shards is written: in index_dir, else beside them, else in the user's cache."""
    beside = _beside(shards)
    if index_dir is None and beside is not None and os.access(beside.parent, os.W_OK):
        return beside
    folder = Path(index_dir).expanduser() if index_dir is not None else Path.home() / ".cache" / "effnet" / "indexes"
    place = [str(shards[0].parent.resolve())] if isinstance(shards[0], Path) else []
    return folder / _file_name([*place, *_names(shards)])


def _beside(shards: Sequence[Shard]) -> Path | None:
    return shards[0].parent / _file_name(_names(shards)) if isinstance(shards[0], Path) else None


def _file_name(parts: Sequence[str]) -> str:
    text = "\n".join(parts).encode("utf-8", "surrogateescape")
    return f".effnet-index-{hashlib.sha256(text).hexdigest()[:12]}.npz"


def _names(shards: Sequence[Shard]) -> list[str]:
    """URLs, and paths as seen from the first shard's folder, so that a folder may move with its index in it."""
    folder = shards[0].parent if isinstance(shards[0], Path) else Path("/")
    return [os.path.relpath(shard, folder) if isinstance(shard, Path) else str(shard) for shard in shards]


def save_index(index: ShardIndex, file: Path) -> None:
    """Write the index, replacing an older one in one step.

    Raises:
        DataError: If it cannot be written there.
    """
    # Not the process id: in containers, processes of several nodes have the same one, and write to the same folder.
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                version=np.int64(FORMAT_VERSION),
                names=np.array(_names(index.shards)),
                shard_bytes=index.shard_bytes,
                shard_mtime_ns=index.shard_mtime_ns,
                shard_samples=index.shard_samples,
                offsets=index.offsets,
                sizes=index.sizes.astype(np.int32 if int(index.sizes.max()) < 2**31 else np.int64),
                labels=index.labels.astype(np.int32),
                shard_tags=np.array(index.shard_tags, dtype=str),
            )
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise _not_written(file, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _not_written(file: Path, error: OSError) -> DataError:
    return DataError(f"the index cannot be written to {file} ({error.strerror}): set data.index_dir")


def load_index(shards: Sequence[Shard], file: Path) -> ShardIndex | None:
    """The saved index of these shards, or None where there is none that can be read."""
    columns = ("shard_bytes", "shard_mtime_ns", "shard_samples", "offsets", "sizes", "labels")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if int(arrays["version"]) != FORMAT_VERSION or arrays["names"].tolist() != _names(shards):
                return None
            tags = tuple(map(str, arrays["shard_tags"].tolist())) if "shard_tags" in arrays.files else ()
            found = {name: arrays[name].astype(np.int64) for name in columns}
            index = ShardIndex(tuple(shards), **found, shard_tags=tags)
    except _DAMAGED:
        return None
    per_shard = {array.shape for array in (index.shard_bytes, index.shard_mtime_ns, index.shard_samples)}
    per_sample = {array.shape for array in (index.offsets, index.sizes, index.labels)}
    fitting = per_shard == {(len(shards),)} and per_sample == {(int(index.shard_samples.sum()),)}
    return index if fitting and len(tags) in (0, len(shards)) else None


def open_index(
    shards: Sequence[Shard],
    *,
    index_dir: str | None = None,
    cache: ShardCache | None = None,
    rescan: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ShardIndex:
    """The index of these shards: read where it is up to date, else made and saved.

    Of several processes that find none, one makes it while the others wait. A scan that is cut short goes on where it
    was.

    Args:
        shards: In the order in which samples are numbered.
        index_dir: Folder for the index; None keeps it beside the shards or in the user's cache.
        cache: Through which remote shards are read; needed where there is one.
        rescan: Scan all shards, whatever an earlier index says.
        progress: Called with the number of shards done, as they are.

    Raises:
        DataError: If a shard cannot be read.
        UnreachableError: If a server does not answer.
    """
    file = index_file(shards, index_dir)
    beside = _beside(shards)
    places = list(dict.fromkeys([beside, file])) if index_dir is None and beside is not None else [file]
    found, _ = (None, None) if rescan else _saved(shards, places, cache)
    if found is not None:
        return found
    with ExitStack() as stack:
        journal = _begin(stack, file, shards)
        found, outdated = (None, None) if rescan else _saved(shards, places, cache)
        if found is None:
            found = build_index(shards, reuse=outdated, cache=cache, journal=journal, progress=progress)
            save_index(found, file)
        if journal is not None:
            journal.remove()
    return found


def _begin(stack: ExitStack, file: Path, shards: Sequence[Shard]) -> Journal | None:
    """Wait until no other process makes this index, and take up what is left of an earlier attempt.

    A file system without locks does without both: several may write the same index, each in one step.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(file_lock(file.with_suffix(".lock")))
        return stack.enter_context(Journal(file.with_suffix(".part"), shards))
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise _not_written(file, error) from error


def _saved(
    shards: Sequence[Shard], places: Sequence[Path], cache: ShardCache | None
) -> tuple[ShardIndex | None, ShardIndex | None]:
    """The saved index that is up to date, or else the last one that is not."""
    saved = [index for index in (load_index(shards, place) for place in places) if index is not None]
    versions = _versions(shards, cache) if saved else []
    for index in saved:
        if all(index.version(i) == version for i, version in enumerate(versions)):
            return index, None
    return None, saved[-1] if saved else None


def _versions(shards: Sequence[Shard], cache: ShardCache | None) -> list[Version | None]:
    """What each shard is now; None for a local one that is not there."""
    urls = [shard for shard in shards if isinstance(shard, Url)]
    if urls and cache is None:
        raise ValueError("remote shards are read through a cache")
    stats = dict(zip(urls, cache.remote.stat_all(urls), strict=True)) if urls and cache is not None else {}
    versions: list[Version | None] = []
    for shard in shards:
        if isinstance(shard, Url):
            versions.append(Version(stats[shard].size, 0, stats[shard].tag))
        else:
            try:
                stat = shard.stat()
                versions.append(Version(stat.st_size, stat.st_mtime_ns, ""))
            except OSError:
                versions.append(None)
    return versions
