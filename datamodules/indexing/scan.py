"""One shard's samples: where each lies and what its label is, by headers alone.

How samples of several shards are numbered is datamodules/indexing/index.py's.
"""

import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from functools import partial
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import numpy as np

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.indexing import tar
from datamodules.indexing.shard_lists import MAX_LIST_BYTES, parse_dali
from datamodules.processes import default_workers, in_processes
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.stats import Stat

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
EXTENSIONS: dict[Modality, tuple[str, ...]] = {
    "image": IMAGE_EXTENSIONS,
    "text": ("txt",),
    "audio": ("wav", "flac"),
}
"""Of each modality, under which a sample may be: the first of them that it has."""
LASTING_ERRORS = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)
"""What running again does not help. Other errors of a file system (a mount that is gone for a moment) may pass."""
_METADATA = re.compile(r"__[^/]*__($|/)")
Group = list[tuple[str, tar.Member]]
"""(extension, member) of each member of a sample."""
_MANY = 64
"""Shards for which it pays to start processes, which takes about a second."""
_DOWNLOADS = 8
MAX_SAMPLE_BYTES = 1 << 30
"""Of a sample with all that belongs to it, which is read into memory at once."""
PICKLES = frozenset({"pickle", "pkl", "pyd", "pt", "pth"})
"""Extensions that webdataset's decoders unpickle, which runs whatever is in them."""


class Version(NamedTuple):
    """What tells a shard from what the same name held before.

    Attributes:
        size: Bytes of the file.
        mtime_ns: Its time of modification in nanoseconds; 0 for a remote one.
        tag: The server's tag of a remote one, else empty.
    """

    size: int
    mtime_ns: int
    tag: str


class Scan(NamedTuple):
    """What one shard has.

    Attributes:
        version: Of the shard, when it was read.
        offsets: Byte at which each sample's first header begins.
        sizes: Bytes from there to the end of its last member.
        labels: The class; -1 where a sample has none.
    """

    version: Version
    offsets: list[int]
    sizes: list[int]
    labels: list[int]


def scan_shards(
    shards: Sequence[Shard],
    *,
    versions: Mapping[Shard, Version | None],
    cache: ShardCache | None,
    modality: Modality = "image",
) -> Iterator[tuple[Shard, Scan]]:
    """Scan shards, several at once, and give each as it is done.

    A local one costs 33 ms of one core for 1,251 samples, which no second thread shortens: many go to processes.

    Raises:
        DataError: For a shard that cannot be read.
        UnreachableError: If a server does not answer.
    """
    local = [shard for shard in shards if isinstance(shard, Path)]
    left = dict.fromkeys(local)
    scan_local = partial(_scan_local, modality=modality)
    try:
        for path, scan in in_processes(scan_local, local, workers=default_workers() if len(local) >= _MANY else 1):
            del left[path]
            yield path, scan
    except ChildProcessError:  # no process could be started, as from a script that is not one to be imported
        yield from map(scan_local, left)
    pool = ThreadPoolExecutor(max_workers=_DOWNLOADS)
    try:
        remote = [shard for shard in shards if isinstance(shard, Url)]
        for done in as_completed([pool.submit(_scan_remote, url, versions[url], cache, modality) for url in remote]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _scan_local(path: Path, *, modality: Modality) -> tuple[Path, Scan]:
    return path, scan_shard(path, modality=modality)


def _scan_remote(url: Url, version: Version | None, cache: ShardCache | None, modality: Modality) -> tuple[Url, Scan]:
    assert version is not None
    assert cache is not None
    descriptor = cache.open(url, Stat(version.size, version.tag))
    with open(descriptor, "rb") as file:
        return url, _scan(file, version, modality=modality, source=str(url), dali=None)


def split_name(name: str) -> tuple[str, str]:
    """Key and extension of a member, by webdataset's convention: cut at the first dot of the base name.

    Source: https://github.com/webdataset/webdataset, base_plus_ext.
    """
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem if stem else "", extension.lower()


def _is_pickle(extension: str) -> bool:
    return not PICKLES.isdisjoint(extension.split("."))  # webdataset unpacks a.pkl.gz, and then unpickles it


def read_members(data: BinaryIO, *, length: int, source: str, whole: bool = True) -> Iterator[tuple[str, Group]]:
    """Samples of an archive: the key, and (extension, member) of consecutive members that share it.

    What webdataset leaves out is left out: names without an extension, and folders or files like `__meta__`.
    """
    key: str | None = None
    group: Group = []
    for member in tar.members(data, length=length, source=source, whole=whole):
        if ".." in member.name and ".." in member.name.split("/"):
            raise DataError(f"{source}: member {member.name!r} points out of the archive")
        member_key, extension = split_name(member.name)
        if not member_key or not extension or _METADATA.match(member.name):
            continue
        if _is_pickle(extension):
            raise DataError(f"{source}: member {member.name!r} is a pickle, which could run code: refused")
        if key is not None and member_key != key:
            yield key, group
            group = []
        key = member_key
        group.append((extension, member))
    if key is not None:
        yield key, group


def scan_shard(path: Path, *, modality: Modality = "image") -> Scan:
    """Read the headers of one shard, and its labels.

    Raises:
        DataError: If it is missing, truncated, or a sample of it has nothing of the modality or no readable label.
    """
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            version = Version(stat.st_size, stat.st_mtime_ns, "")
            return _scan(file, version, modality=modality, source=str(path), dali=_dali_text(path, stat))
    except LASTING_ERRORS as error:
        raise DataError(f"{path}: {error.strerror}") from error


def _scan(file: BinaryIO, version: Version, *, modality: Modality, source: str, dali: str | None) -> Scan:
    scan = Scan(version, [], [], [])
    groups = _groups_by_dali(file, dali, length=version.size) if dali is not None else None
    for key, group in groups or read_members(file, length=version.size, source=source):
        if not _is_sample(key, [extension for extension, _ in group], EXTENSIONS[modality], source):
            continue
        start = group[0][1].offset
        size = group[-1][1].end - start
        if size > MAX_SAMPLE_BYTES:
            raise DataError(f"{source}: sample {key} has {size:,} bytes, more than {MAX_SAMPLE_BYTES:,}: refused")
        scan.offsets.append(start)
        scan.sizes.append(size)
        scan.labels.append(read_label(file, group, f"{source}: sample {key}"))
    if not scan.offsets:
        raise DataError(f"{source}: no sample in it")
    return scan


def _is_sample(key: str, extensions: list[str], wanted: Sequence[str], source: str) -> bool:
    if len(set(extensions)) < len(extensions):
        raise DataError(f"{source}: sample {key} has {extensions} twice over")
    if any(extension in wanted for extension in extensions):
        return True
    if _METADATA.match(PurePosixPath(key).name):
        return False
    raise DataError(f"{source}: sample {key} has {extensions}, none of {', '.join(wanted)}")


def _dali_text(path: Path, stat: os.stat_result) -> str | None:
    """DALI's index beside a shard, if there is one that is not older."""
    for index in (path.with_suffix(".idx"), Path(f"{path}.idx")):
        if index.is_file():
            newer = index.stat().st_mtime_ns >= stat.st_mtime_ns and index.stat().st_size <= MAX_LIST_BYTES
            return index.read_text(encoding="utf-8", errors="surrogateescape") if newer else None
    return None


def _groups_by_dali(file: BinaryIO, text: str, *, length: int) -> list[tuple[str, Group]] | None:
    """What ``read_members`` gives, without reading the headers; None where the index does not fit the shard."""
    samples = parse_dali(text)
    groups: list[tuple[str, Group]] = []
    for members in samples or ():
        keys, group = set(), []
        for name, data_offset, size in members:
            key, extension = split_name(name)
            if not key or not extension or _METADATA.match(name) or ".." in name or _is_pickle(extension):
                return None
            keys.add(key)
            group.append((extension, tar.Member(name, data_offset - tar.BLOCK, data_offset, size)))
        if len(keys) != 1 or (groups and key == groups[-1][0]):
            return None
        groups.append((key, group))
    return groups if groups and _is_last(file, groups[-1][1][-1][1], length=length) else None


def _is_last(file: BinaryIO, member: tar.Member, *, length: int) -> bool:
    """Whether an archive of that length ends with this member."""
    if member.end - member.offset > min(length, MAX_SAMPLE_BYTES):
        return False
    file.seek(member.offset)
    tail = file.read(member.end - member.offset + tar.BLOCK)
    try:
        [found] = tar.members(io.BytesIO(tail), length=len(tail), source="")
    except (DataError, ValueError):
        return False
    return (found.name, found.size) == (member.name, member.size) and not file.read().strip(b"\0")


def read_label(file: BinaryIO, group: Group, source: str) -> int:
    """The label of a sample, from its ``cls`` or ``json``; -1 where it has none.

    Raises:
        DataError: If there is one that is no integer of 32 bits.
    """
    named = dict(group)
    for extension in ("cls", "json"):
        member = named.get(extension)
        if member is None:
            continue
        file.seek(member.data_offset)
        text = file.read(min(member.size, 1 << 20)).decode("utf-8", "replace")
        try:
            value = int(text) if extension == "cls" else _json_label(text)
            if value is not None:
                return int(np.int32(value))
        except (ValueError, OverflowError, RecursionError):
            raise DataError(f"{source}: .{extension} is not a label: {text[:80]!r}") from None
    return -1


def _json_label(text: str) -> int | None:
    fields = json.loads(text)
    for name in ("label", "cls", "class", "target"):
        value = fields.get(name) if isinstance(fields, dict) else None
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    return None
