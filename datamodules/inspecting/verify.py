"""Checking shards as training would find them: every archive whole, every sample decoded, every label in range."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError, UnreachableError
from configs.schema.section import Modality
from datamodules.bars import Bar, no_bar
from datamodules.images.decoding import BadSampleError
from datamodules.indexing.scan import EXTENSIONS, Group, read_label, read_members
from datamodules.inspecting.kinds import KINDS
from datamodules.inspecting.shards import class_names, folder_of, open_shard, split_name
from datamodules.processes import in_processes
from datamodules.storage.cache import CacheFullError, ShardCache
from datamodules.storage.locations import Shard

KEY_HASH_BYTES = 8
"""Keys that share a hash are compared before they are reported."""


class Bad(NamedTuple):
    """What is wrong: with a sample, or with the shard from there on where the key is None."""

    shard: str
    key: str | None
    reason: str


@dataclass(frozen=True)
class _Task:
    number: int
    shard: Shard
    num_classes: int | None
    cache: ShardCache | None
    modality: Modality


@dataclass(frozen=True)
class _Found:
    number: int
    keys: bytes  # joined by zero bytes
    hashes: NDArray[np.uint64]  # (samples,)
    bad: list[Bad]


def verify(
    shards: Sequence[Shard],
    *,
    num_classes: int | None = None,
    expected: Mapping[Shard, int] | None = None,
    cache: ShardCache | None = None,
    workers: int = 1,
    bar: Bar = no_bar,
    modality: Modality = "image",
) -> tuple[int, list[Bad]]:
    """Read every shard from end to end.

    Args:
        shards: Tar files.
        num_classes: Labels are below it; taken from ``classes.json`` beside a shard if None, and if that exists.
        expected: How many samples shards should have, where a list says so.
        cache: Through which remote shards are read; needed where there is one.
        workers: Processes, each at one shard.
        bar: Progress in shards.
        modality: What samples should be.

    Returns:
        The number of samples looked at, and all that is bad, in the order of the shards.

    Raises:
        CacheFullError: If the cache has no room for the shards that are looked at together.
        UnreachableError: If a server does not answer.
    """
    first = {folder_of(shard): shard for shard in reversed(shards)}
    named = {folder: class_names(shard, cache) for folder, shard in first.items()} if num_classes is None else {}
    tasks = []
    for number, shard in enumerate(shards):
        names = named.get(folder_of(shard))
        count = num_classes if num_classes is not None else len(names) if names is not None else None
        tasks.append(_Task(number, shard, count, cache, modality))
    results = []
    checking = in_processes(_check, tasks, workers=min(workers, len(tasks)))
    with bar("verifying shards", len(shards)) as advance, closing(checking) as done:
        for result in done:
            results.append(result)
            advance(1)
    results.sort(key=lambda result: result.number)
    bad = [each for result in results for each in result.bad] + _repeated(shards, results)
    for result in results:
        wanted, found = (expected or {}).get(shards[result.number]), len(result.hashes)
        if wanted is not None and wanted != found:
            bad.append(Bad(shards[result.number].name, None, f"{found} samples, but its list says {wanted}"))
    return sum(len(result.hashes) for result in results), bad


def _check(task: _Task) -> _Found:
    """Check one shard; what a worker does."""
    keys, bad = list[bytes](), list[Bad]()
    shard, source = task.shard.name, str(task.shard)
    try:
        with open_shard(task.shard, task.cache) as file:
            length = os.fstat(file.fileno()).st_size
            for key, members in read_members(file, length=length, source=source):
                keys.append(key.encode("utf-8", "surrogateescape"))
                bad += [Bad(shard, key, reason) for reason in _faults(file, members, task.num_classes, task.modality)]
        if not keys:
            bad.append(Bad(shard, None, "no sample in it"))
    except CacheFullError:
        raise
    except DataError as error:
        bad.append(Bad(shard, None, str(error).removeprefix(f"{source}: ")))
    except UnreachableError:
        raise
    except OSError as error:
        bad.append(Bad(shard, None, error.strerror or str(error)))
    digests = b"".join(hashlib.blake2b(key, digest_size=KEY_HASH_BYTES).digest() for key in keys)
    return _Found(task.number, b"\0".join(keys), np.frombuffer(digests, dtype=np.uint64), bad)


def _faults(file: BinaryIO, members: Group, num_classes: int | None, modality: Modality) -> list[str]:
    faults = []
    extensions = [extension for extension, _ in members]
    if len(set(extensions)) < len(extensions):
        faults.append(f"has {', '.join(extensions)}: one of them twice")
    try:
        label = read_label(file, members, "label")
        if label < 0:
            faults.append("no label" if label == -1 else f"label {label}: labels begin with 0")
        elif num_classes is not None and label >= num_classes:
            faults.append(f"label {label}, but there are {num_classes} classes")
    except DataError as error:
        faults.append(str(error).removeprefix("label: "))
    wanted = [each for each in members if each[0] in EXTENSIONS[modality]]
    if not wanted:
        faults.append(f"has {', '.join(extensions)}, none of {', '.join(EXTENSIONS[modality])}")
    for extension, member in wanted:
        file.seek(member.data_offset)
        try:
            KINDS[modality].check(file.read(member.size))
        except BadSampleError as error:
            faults.append(f"{extension}: {error}")
    return faults


def _repeated(shards: Sequence[Shard], results: Sequence[_Found]) -> list[Bad]:
    """Samples whose key came before in the same split, in the order of the shards."""
    bad: list[Bad] = []
    splits: dict[tuple[str, str], list[_Found]] = {}
    for result in results:
        place = shards[result.number]
        splits.setdefault((folder_of(place), split_name(place)), []).append(result)
    for found in splits.values():
        hashes = np.concatenate([result.hashes for result in found])
        values, counts = np.unique(hashes, return_counts=True)
        suspects = values[counts > 1]
        first: dict[bytes, str] = {}
        for result in found if len(suspects) else ():
            keys = result.keys.split(b"\0")
            shard = shards[result.number].name
            for position in np.flatnonzero(np.isin(result.hashes, suspects)):
                key = keys[position]
                if key in first:
                    bad.append(Bad(shard, key.decode("utf-8", "surrogateescape"), f"its key is also in {first[key]}"))
                first.setdefault(key, shard)
    return bad
