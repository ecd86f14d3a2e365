"""From a server to a file of this machine. What breaks off goes on where it was, within one version of the file."""

import asyncio
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from configs.problems import DataError
from datamodules.storage.filesystems import bounded, filesystem, place, run
from datamodules.storage.locations import Url
from datamodules.storage.stats import Stat, describe, stat_of, verify

PART_BYTES = 8 << 20
"""Of the files of an object store, which are asked for part by part: what a failure costs."""
_PARTS_AT_ONCE = 4
_CHUNK_BYTES = 1 << 17


class Transfer:
    """One version of a remote file on its way to ``file``, which exists and is never replaced: others have it open."""

    def __init__(
        self, url: Url, file: Path, expected: Stat, *, timeout_s: float, arrived: Callable[[int], None] | None = None
    ) -> None:
        """Ask for nothing yet. ``arrived`` is told of bytes as they come, from whatever thread they come in."""
        self._url, self._file, self._expected, self._timeout_s = url, file, expected, timeout_s
        self._arrived = arrived or (lambda _: None)
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._tag: str | None = None  # of the version that an HTTP server has sent in part
        self._missing = set(range(0, self._expected.size, PART_BYTES))  # where parts of an object store's file begin

    def attempt(self) -> None:
        """Fetch what has not come yet, and see that the whole is the version that is expected.

        Raises:
            DataError: If the server has another version now.
            EOFError: If bytes are missing, or have another checksum than the server's.
            Exception: Whatever the client of a server raises.
        """
        access = filesystem(self._url.protocol, self._timeout_s)
        with self._file.open("r+b") as stream:
            if self._url.is_http:
                run(access, self._over_http(access, stream))
            elif self._url.protocol == "hf":
                self._describe()
                name = place(self._url, self._timeout_s)
                bounded(lambda: access.info(name), timeout_s=self._timeout_s)  # or it asks itself, and waits for ever
                stream.truncate()
                # It goes on by itself where a connection breaks. Given a path, it may put a file of its own there.
                access.get_file(name, outfile=stream)
                self._arrived(stream.tell())
            else:
                run(access, self._in_parts(access, stream, self._describe()))
        info = self._describe()
        try:
            size = self._file.stat().st_size
            if size != self._expected.size:
                raise EOFError(f"{size} bytes came, of {self._expected.size}")  # noqa: TRY301 - as a bad checksum
            verify(self._file, info)
        except EOFError:
            self._begin_anew()
            raise

    def _describe(self) -> Mapping[str, Any]:
        info = describe(self._url, self._timeout_s)
        if stat_of(self._url, info) != self._expected:
            raise DataError(f"{self._url}: the shard has changed since it was indexed")
        return info

    async def _over_http(self, access: Any, stream: BinaryIO) -> None:
        """What is left of the version that came first; all, where the server has another now or sends no parts."""
        session = await access.set_session()
        come = stream.seek(0, os.SEEK_END) if self._tag else 0
        headers = {"Accept-Encoding": "identity"}
        if come and self._tag:
            headers |= {"Range": f"bytes={come}-", "If-Range": self._tag}
        async with session.get(access.encode_url(str(self._url)), headers=headers) as answer:
            if answer.status != 416:  # what has come already is no part of it any more
                answer.raise_for_status()
            tag = answer.headers.get("ETag", "")
            continued = answer.status == 206 and answer.headers.get("Content-Range", "").startswith(f"bytes {come}-")
            if come and not (continued and tag in ("", self._tag)):
                self._tag = None
                if answer.status != 200:
                    raise EOFError(f"status {answer.status} for the bytes from {come} on")
                come = 0
            answer.raise_for_status()
            stream.seek(come)
            stream.truncate()
            if not come:
                self._tag = None if tag.startswith("W/") else tag or None
            async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                stream.write(chunk)
                self._arrived(len(chunk))

    async def _in_parts(self, access: Any, stream: BinaryIO, info: Mapping[str, Any]) -> None:
        """The parts that are missing, a few at once; none is begun after a failure."""
        stream.truncate(self._expected.size)
        name, gate = place(self._url, self._timeout_s), asyncio.Semaphore(_PARTS_AT_ONCE)
        pinned = {"generation": info["generation"]} if self._url.protocol == "gs" else {}
        failures: list[Exception] = []

        async def fetch(first: int) -> None:
            last = min(first + PART_BYTES, self._expected.size)
            async with gate:
                if failures:
                    return
                try:
                    part = await access._cat_file(name, start=first, end=last, **pinned)
                    self._arrived(len(part))
                    if len(part) != last - first:
                        raise EOFError(f"{len(part)} bytes came, of the {last - first} from {first} on")  # noqa: TRY301
                    os.pwrite(stream.fileno(), part, first)
                    self._missing.discard(first)
                except Exception as error:
                    failures.append(error)

        await asyncio.gather(*map(fetch, sorted(self._missing)))
        if failures:
            raise failures[0]
