"""The index of a split: where each sample lies in which shard, and its label. Made by one scan of the headers.

Kept as one compact binary file (a few arrays in NumPy's format, never pickled), it is checked against size and
modification time of every shard; shards that changed are scanned again.
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from datamodules import tar

FORMAT_VERSION = 1
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
Int64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class ShardIndex:
    """All samples of a split, numbered shard after shard in the order of the shards.

    Attributes:
        shards: Paths of the tar files.
        shard_bytes: (shards,) int64, size of each file.
        shard_mtime_ns: (shards,) int64, modification time of each file in nanoseconds.
        shard_samples: (shards,) int64, samples in each file.
        offsets: (samples,) int64, byte at which a sample's first header begins.
        sizes: (samples,) int64, bytes from there to the end of its last member.
        labels: (samples,) int64, the class; -1 where the sample has none.
    """

    shards: tuple[Path, ...]
    shard_bytes: Int64
    shard_mtime_ns: Int64
    shard_samples: Int64
    offsets: Int64
    sizes: Int64
    labels: Int64

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


@dataclass(frozen=True, eq=False)
class _Scan:
    size: int
    mtime_ns: int
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, by webdataset's convention: cut at the first dot of the base name.

    Source: https://github.com/webdataset/webdataset, base_plus_ext.
    """
    path = PurePosixPath(name)
    base, _, extension = path.name.partition(".")
    return str(path.with_name(base)) if base else "", extension.lower()


def read_members(data: BinaryIO, *, length: int, source: str) -> Iterator[tuple[str, list[tuple[str, tar.Member]]]]:
    """Samples of an archive: the key, and (extension, member) of consecutive members that share it."""
    key: str | None = None
    group: list[tuple[str, tar.Member]] = []
    for member in tar.members(data, length=length, source=source):
        if ".." in PurePosixPath(member.name).parts:
            raise DataError(f"{source}: member {member.name!r} points out of the archive")
        member_key, extension = split_name(member.name)
        if (
            not member_key
            or not extension
            or member_key.startswith("__")
            or PurePosixPath(member.name).name[:2] == "__"
        ):
            continue
        if key is not None and member_key != key:
            yield key, group
            group = []
        key = member_key
        group.append((extension, member))
    if key is not None:
        yield key, group


def scan_shard(path: Path) -> _Scan:
    """Read the headers of one shard, and its labels.

    Raises:
        DataError: If it is missing, truncated, or a sample of it has no image or no readable label.
    """
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            scan = _Scan(stat.st_size, stat.st_mtime_ns, [], [], [])
            for key, group in read_members(file, length=stat.st_size, source=str(path)):
                extensions = [extension for extension, _ in group]
                if len(set(extensions)) < len(extensions):
                    raise DataError(f"{path}: sample {key} has {extensions} twice over")
                if not any(extension in IMAGE_EXTENSIONS for extension in extensions):
                    raise DataError(f"{path}: sample {key} has {extensions}, none of {', '.join(IMAGE_EXTENSIONS)}")
                start = group[0][1].offset
                scan.offsets.append(start)
                scan.sizes.append(group[-1][1].end - start)
                scan.labels.append(_label(file, group, f"{path}: sample {key}"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    if not scan.offsets:
        raise DataError(f"{path}: no sample in it")
    return scan


def _label(file: BinaryIO, group: list[tuple[str, tar.Member]], source: str) -> int:
    named = dict(group)
    for extension in ("cls", "json"):
        member = named.get(extension)
        if member is None:
            continue
        file.seek(member.data_offset)
        text = file.read(min(member.size, 1 << 20)).decode("utf-8", "replace")
        try:
            value = int(text) if extension == "cls" else _json_label(text)
        except ValueError:
            raise DataError(f"{source}: .{extension} is not a label: {text[:80]!r}") from None
        if value is not None:
            return value
    return -1


def _json_label(text: str) -> int | None:
    fields = json.loads(text)
    for name in ("label", "cls", "class", "target"):
        if isinstance(fields, dict) and isinstance(fields.get(name), int):
            return int(fields[name])
    return None


def build_index(
    shards: Sequence[Path], *, reuse: ShardIndex | None = None, progress: Callable[[int], None] | None = None
) -> ShardIndex:
    """Scan shards, several at once.

    Args:
        shards: In the order in which samples are numbered.
        reuse: An older index; its shards that have not changed are not read again.
        progress: Called with 1 after each shard.

    Raises:
        DataError: For the first shard that cannot be read.
    """
    known = {path.name: i for i, path in enumerate(reuse.shards)} if reuse else {}

    def scan(path: Path) -> _Scan:
        old = known.get(path.name)
        if reuse is not None and old is not None and _unchanged(path, reuse, old):
            part = slice(int(reuse.starts[old]), int(reuse.starts[old + 1]))
            arrays = (reuse.offsets[part], reuse.sizes[part], reuse.labels[part])
            found = _Scan(
                int(reuse.shard_bytes[old]), int(reuse.shard_mtime_ns[old]), *(array.tolist() for array in arrays)
            )
        else:
            found = scan_shard(path)
        if progress is not None:
            progress(1)
        return found

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        scans = list(pool.map(scan, shards))

    def column(values: Iterator[Sequence[int]]) -> Int64:
        return np.concatenate([np.asarray(value, dtype=np.int64) for value in values])

    return ShardIndex(
        shards=tuple(shards),
        shard_bytes=np.array([s.size for s in scans], dtype=np.int64),
        shard_mtime_ns=np.array([s.mtime_ns for s in scans], dtype=np.int64),
        shard_samples=np.array([len(s.offsets) for s in scans], dtype=np.int64),
        offsets=column(s.offsets for s in scans),
        sizes=column(s.sizes for s in scans),
        labels=column(s.labels for s in scans),
    )


def index_file(shards: Sequence[Path], index_dir: str | None) -> Path:
    """Where the index of these shards is kept."""
    names = "\n".join(path.name for path in shards)
    name = f".effnet-index-{hashlib.sha256(names.encode('utf-8', 'surrogateescape')).hexdigest()[:12]}.npz"
    if index_dir is not None:
        return Path(index_dir) / name
    beside = shards[0].parent
    if os.access(beside, os.W_OK):
        return beside / name
    place = hashlib.sha256(str(beside.resolve()).encode()).hexdigest()[:12]
    return Path.home() / ".cache" / "effnet" / "indexes" / place / name


def save_index(index: ShardIndex, file: Path) -> None:
    """Write the index, replacing an older one in one step."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        np.savez_compressed(
            stream,
            version=np.int64(FORMAT_VERSION),
            names=np.array([path.name for path in index.shards]),
            shard_bytes=index.shard_bytes,
            shard_mtime_ns=index.shard_mtime_ns,
            shard_samples=index.shard_samples,
            offsets=index.offsets,
            sizes=index.sizes.astype(np.int32 if int(index.sizes.max()) < 2**31 else np.int64),
            labels=index.labels.astype(np.int32),
        )
        stream.flush()
        os.fsync(stream.fileno())
    temporary.replace(file)


def load_index(shards: Sequence[Path], file: Path) -> ShardIndex | None:
    """The saved index of these shards, or None where there is none that can be read."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            if int(arrays["version"]) != FORMAT_VERSION or arrays["names"].tolist() != [path.name for path in shards]:
                return None
            columns = ("shard_bytes", "shard_mtime_ns", "shard_samples", "offsets", "sizes", "labels")
            return ShardIndex(tuple(shards), **{name: arrays[name].astype(np.int64) for name in columns})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return None


def open_index(
    shards: Sequence[Path], *, index_dir: str | None = None, progress: Callable[[int], None] | None = None
) -> ShardIndex:
    """The index of these shards: read where it is up to date, else made and saved.

    Raises:
        DataError: If a shard cannot be read.
    """
    file = index_file(shards, index_dir)
    saved = load_index(shards, file)
    if saved is not None and all(_unchanged(path, saved, i) for i, path in enumerate(shards)):
        return saved
    index = build_index(shards, reuse=saved, progress=progress)
    save_index(index, file)
    return index


def _unchanged(path: Path, index: ShardIndex, shard: int) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    return (stat.st_size, stat.st_mtime_ns) == (int(index.shard_bytes[shard]), int(index.shard_mtime_ns[shard]))
