"""How fast this node reads shards from where they are kept, and how many of their bytes a sample has."""

import io
import os
import tarfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from configs.problems import DataError
from configs.schema import Data
from datamodules.indexing.urls import find_shards
from datamodules.storage.locations import Shard, Url
from datamodules.storage.remote import Remote

PART_BYTES = 4 << 20
MOST_READERS = 16
ATTEMPTS, TIMEOUT_S = 2, 20.0
"""Of each request: who asks whether a server answers does not wait as long as training would."""


class ReadRate(NamedTuple):
    """What was measured.

    Attributes:
        bytes_per_s: Of all readers together.
        sample_bytes: Bytes of a shard for each of its samples, headers and padding included; None if none was whole.
        read_bytes: That were read.
        read_shards: Shards that were read from.
        remote: Whether a server has any of them.
    """

    bytes_per_s: float
    sample_bytes: float | None
    read_bytes: int
    read_shards: int
    remote: bool


def read_rate(data: Data, *, node_rank: int, num_nodes: int, readers: int, seconds: float) -> ReadRate:
    """Read shards of the training split past all caches, from their beginnings on, several at once.

    Args:
        data: Where the shards are.
        node_rank: This node: each has shards of its own.
        num_nodes: Nodes that read at once.
        readers: Loader processes of this node.
        seconds: After which no further part is asked for.

    Raises:
        DataError: If there are no shards, or one cannot be read.
        UnreachableError: If a server does not answer.
    """
    remote = Remote(attempts=ATTEMPTS, timeout_s=min(data.download_timeout_s, TIMEOUT_S))
    shards = find_shards(data.train_shards, remote).shards
    count = min(max(readers, 1), MOST_READERS, len(shards))
    first = len(shards) * node_rank // num_nodes
    chosen = [shards[(first + len(shards) * i // count) % len(shards)] for i in range(count)]
    started = time.monotonic()
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(lambda shard: _read(shard, remote, until=started + seconds), chosen))
    elapsed_s = max(time.monotonic() - started, 1e-6)
    total = sum(read for _, read in found)
    sizes = [size for beginning, _ in found if (size := sample_bytes(beginning)) is not None]
    return ReadRate(
        bytes_per_s=total / elapsed_s,
        sample_bytes=sum(sizes) / len(sizes) if sizes else None,
        read_bytes=total,
        read_shards=count,
        remote=any(isinstance(shard, Url) for shard in shards),
    )


def sample_bytes(beginning: bytes) -> float | None:
    """Bytes for each sample of a shard, by the whole ones in its first bytes; None if there is none."""
    ends: dict[str, int] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(beginning), mode="r:") as archive:
            for member in archive:
                end = member.offset_data + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                if member.isfile() and end <= len(beginning):
                    folder, _, name = member.name.rpartition("/")
                    ends[f"{folder}/{name.partition('.')[0]}"] = end
    except tarfile.TarError:
        pass  # the rest was not read
    return max(ends.values()) / len(ends) if ends else None


def _read(shard: Shard, remote: Remote, *, until: float) -> tuple[bytes, int]:
    """The first part of a shard, and how many bytes of it were read until then (monotonic seconds)."""
    if isinstance(shard, Url):
        return _parts(lambda start, end: remote.read_part(shard, start=start, end=end), remote.stat(shard).size, until)
    return _read_local(shard, until)


def _read_local(shard: Path, until: float) -> tuple[bytes, int]:
    try:
        descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror or error}") from error
    try:
        if hasattr(os, "posix_fadvise"):  # what is in memory already would tell nothing of the disk
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.fstat(descriptor).st_size
        return _parts(lambda start, end: os.pread(descriptor, end - start, start), size, until)
    except OSError as error:
        raise DataError(f"{shard}: {error.strerror or error}") from error
    finally:
        os.close(descriptor)


def _parts(read: Callable[[int, int], bytes], size: int, until: float) -> tuple[bytes, int]:
    beginning, come = b"", 0
    while come < size and (not come or time.monotonic() < until):
        part = read(come, min(come + PART_BYTES, size))
        if not part:
            break
        beginning = beginning or part
        come += len(part)
    return beginning, come
