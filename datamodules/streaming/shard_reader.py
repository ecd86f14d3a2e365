"""Raw samples by number, out of shards that are opened as they are needed and are still those that were indexed."""

import io
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

from configs.problems import DataError
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.scan import LASTING_ERRORS, read_members, split_name
from datamodules.indexing.tar import members
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.stats import Stat

RawSample = dict[str, Any]
"""``__key__``, ``__url__``, ``__index__``, ``__label__``, and bytes by extension; out of the source stage also
``__epoch__``, ``__repeat__``, ``__stage__`` and ``__weight__``."""
_OPEN_SHARDS = 64
_HEAD_BYTES = 4096
"""More than the headers of most names take."""


class ShardReader:
    """Reads samples by number, keeping the files last used open. Remote shards are read in the cache.

    Attributes:
        bytes_read: Of all samples so far.
    """

    def __init__(self, index: ShardIndex, cache: ShardCache | None = None) -> None:
        self.index = index
        self.cache = cache
        self.bytes_read = 0
        self._files: OrderedDict[int, int] = OrderedDict()

    def read(self, sample: int) -> RawSample:
        """Key, extension and contents of one sample.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        index = self.index
        shard = index.shard_of(sample)
        path, length = index.shards[shard], int(index.sizes[sample])
        data = os.pread(self._file(shard), length, int(index.offsets[sample]))
        if len(data) < length:
            raise DataError(f"{path}: sample {sample} should have {length} bytes, {len(data)} are there")
        self.bytes_read += length
        found = list(read_members(io.BytesIO(data), length=length, source=str(path), whole=False))
        if len(found) != 1:
            raise DataError(f"{path}: the shard is not the one that was indexed (sample {sample})")
        key, group = found[0]
        members = {extension: data[m.data_offset : m.data_offset + m.size] for extension, m in group}
        return members | {
            "__key__": key,
            "__url__": str(path),
            "__index__": sample,
            "__label__": int(index.labels[sample]),
        }

    def key(self, sample: int) -> str:
        """Key of one sample, from the first header of it.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        _, offset, head_bytes = self._head(sample)
        head = os.pread(self._file(self.index.shard_of(sample)), head_bytes, offset)
        return self._key_in(head, sample) or str(self.read(sample)["__key__"])

    def key_alone(self, sample: int) -> str | None:
        """As ``key``, of a remote shard without fetching all of it; None where its name is too long for that.

        Raises:
            DataError: If the shard is gone or holds something else than the index says.
            UnreachableError: If a server does not give it.
        """
        shard, offset, head_bytes = self._head(sample)
        if not isinstance(shard, Url):
            return self.key(sample)
        assert self.cache is not None
        head = self.cache.remote.read_part(shard, start=offset, end=offset + head_bytes)
        return self._key_in(head, sample)

    def _head(self, sample: int) -> tuple[Shard, int, int]:
        """A sample's shard, its first byte there, and how many of its bytes have the first header."""
        index = self.index
        shard, length = index.shards[index.shard_of(sample)], int(index.sizes[sample])
        return shard, int(index.offsets[sample]), min(length, _HEAD_BYTES)

    def _key_in(self, head: bytes, sample: int) -> str | None:
        """The key in a sample's first bytes; None for a name that is longer than that."""
        index = self.index
        source, length = str(index.shards[index.shard_of(sample)]), int(index.sizes[sample])
        try:
            first = next(members(io.BytesIO(head), length=length, source=source, whole=False))
        except DataError:
            return None
        return split_name(first.name)[0]

    def give_back(self) -> None:
        """Close remote shards, that others may take their room in the cache.

        A worker whose batches nobody takes yet would hold on to its shards, and the worker that is waited for may need
        the room.
        """
        if self.index.shard_tags:
            self.close()

    def close(self) -> None:
        """Close all files."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, shard: int) -> int:
        if shard in self._files:
            self._files.move_to_end(shard)
            return self._files[shard]
        if len(self._files) >= _OPEN_SHARDS:
            self._close_oldest()
        name = self.index.shards[shard]
        self._files[shard] = self._open_remote(shard, name) if isinstance(name, Url) else self._open_local(shard, name)
        return self._files[shard]

    def _close_oldest(self) -> bool:
        if self._files:
            os.close(self._files.popitem(last=False)[1])
            return True
        return False

    def _open_local(self, shard: int, path: Path) -> int:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except LASTING_ERRORS as error:
            raise DataError(f"{path}: {error.strerror}") from error
        if not self.index.fits(shard, os.fstat(descriptor)):
            os.close(descriptor)
            raise DataError(f"{path}: the shard has changed since it was indexed")
        return descriptor

    def _open_remote(self, shard: int, url: Url) -> int:
        assert self.cache is not None
        size, _, tag = self.index.version(shard)
        return self.cache.open(url, Stat(size, tag), give_way=self._close_oldest)
