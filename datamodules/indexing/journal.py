"""Scans that are kept one by one, so that an index whose making was cut short need not begin again."""

import json
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from datamodules.indexing.scan import Scan, Version
from datamodules.storage.locations import Shard

_LENGTHS = struct.Struct("<4sIQI")
"""Magic, bytes of the head, bytes of the columns, checksum of both."""
_MAGIC = b"scan"


class Journal:
    """A file to which each scan is appended, and the scans that were in it.

    Attributes:
        scans: What was found there, by shard; damaged or half-written records are cut off.
    """

    def __init__(self, path: Path, shards: Sequence[Shard]) -> None:
        self._path = path
        self._file = path.open("a+b")
        self._file.seek(0)
        contents = self._file.read()
        by_name = {str(shard): shard for shard in shards}
        self.scans: dict[Shard, Scan] = {}
        good = 0
        for name, scan, end in _records(contents):
            good = end
            if name in by_name:
                self.scans[by_name[name]] = scan
        self._file.truncate(good)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        empty = not os.fstat(self._file.fileno()).st_size
        self._file.close()
        if empty:
            self.remove()

    def append(self, shard: Shard, scan: Scan) -> None:
        """Keep a scan, even if this process is killed afterwards."""
        head = json.dumps([str(shard), *scan.version]).encode()
        columns = np.array([scan.offsets, scan.sizes, scan.labels], dtype="<i8").tobytes()
        self._file.write(_LENGTHS.pack(_MAGIC, len(head), len(columns), zlib.crc32(head + columns)) + head + columns)
        self._file.flush()

    def remove(self) -> None:
        """Take the file away: all that it has is in the index now."""
        self._path.unlink(missing_ok=True)


def _records(contents: bytes) -> Iterator[tuple[str, Scan, int]]:
    """Name, scan and end of each record, up to the first that is not whole."""
    position = 0
    while position + _LENGTHS.size <= len(contents):
        magic, head_size, columns_size, checksum = _LENGTHS.unpack_from(contents, position)
        start = position + _LENGTHS.size
        body = contents[start : start + head_size + columns_size]
        if magic != _MAGIC or len(body) < head_size + columns_size or zlib.crc32(body) != checksum:
            return
        name, *version = json.loads(body[:head_size])
        offsets, sizes, labels = np.frombuffer(body[head_size:], dtype="<i8").reshape(3, -1).tolist()
        position = start + len(body)
        yield name, Scan(Version(*version), offsets, sizes, labels), position
