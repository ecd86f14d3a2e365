"""Files on servers, through fsspec: what is known of them, their bytes, and trying again where a server fails.

Owns no place on disk: datamodules/storage/cache.py says where shards are kept.
"""

import asyncio
import base64
import binascii
import errno
import functools
import hashlib
import logging
import os
import random
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

from configs.problems import DataError, UnreachableError
from datamodules.storage.locations import EXTRAS, Url

logger = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
_AT_ONCE = 16
_PASSING_STATUS = (408, 425, 429)
_NO_HEAD = (403, 405, 501)
_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "ProfileNotFound")
"""botocore's, which is not here without the s3 extra."""
_OWN_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG)
_HEADERS = ("ETag", "Content-MD5", "Last-Modified")
_RANDOM = random.SystemRandom()
"""Not Python's global generator: downloads go on while other threads draw augmentations from it, by seed."""
Result = TypeVar("Result")


class Stat(NamedTuple):
    """What tells one version of a remote file from another.

    Attributes:
        size: Bytes.
        tag: The server's own: ETag, hash or time of modification; empty where it has none.
    """

    size: int
    tag: str


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Access to servers. Holds settings alone, so that it may go to another process; connections are of each process.

    Attributes:
        attempts: How often each transfer is tried.
        timeout_s: Longest wait for an answer, and for the next bytes of a file.
    """

    attempts: int = 8
    timeout_s: float = 60.0

    def stat(self, url: Url) -> Stat:
        """Size and tag of a file.

        Raises:
            DataError: If the server has no such file, or does not say how large it is.
            UnreachableError: If it does not answer.
        """
        return self._retrying(url, lambda: _stat(url, self._info(url)))

    def stat_all(self, urls: Sequence[Url]) -> list[Stat]:
        """As ``stat``, in few requests where a server lists folders."""
        folders = {url.folder for url in urls if not url.is_http}
        listed: dict[str, Mapping[str, Any]] = {}
        for folder in folders if len(urls) > len(folders) else ():
            listed |= {str(info["name"]): info for info in self._list(Url(folder))}

        def stat(url: Url) -> Stat:
            info = listed.get(_filesystem(url.protocol, self.timeout_s)._strip_protocol(str(url)))
            return self.stat(url) if info is None else _stat(url, info)

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(stat, urls))

    def tars(self, folder: Url) -> list[Url]:
        """The ``.tar`` files of a folder, by name."""
        names = sorted(str(info["name"]) for info in self._list(folder) if info.get("type") == "file")
        return [Url(f"{folder.protocol}://{name}") for name in names if name.endswith(".tar")]

    def glob(self, pattern: Url) -> list[Url]:
        """The files that a pattern matches, by name."""

        def attempt() -> list[str]:
            filesystem = _filesystem(pattern.protocol, self.timeout_s)
            return sorted(self._call(filesystem, "glob", filesystem._strip_protocol(str(pattern))))

        return [Url(f"{pattern.protocol}://{name}") for name in self._retrying(pattern, attempt)]

    def read(self, url: Url, *, max_bytes: int) -> bytes:
        """The contents of a small file."""
        size = self.stat(url).size
        if size > max_bytes:
            raise DataError(f"{url}: {size} bytes, more than the {max_bytes} that a list of shards may have")

        def attempt() -> bytes:
            filesystem = _filesystem(url.protocol, self.timeout_s)
            contents: bytes = self._call(filesystem, "cat_file", filesystem._strip_protocol(str(url)))
            return contents

        return self._retrying(url, attempt)

    def download(self, url: Url, file: Path, expected: Stat) -> None:
        """Write a remote file's bytes to ``file``, which exists, and see that they are those of ``expected``.

        Raises:
            DataError: If the server has another version now, or none.
            OSError: If there is no room on this machine's disk.
            UnreachableError: If the server does not give all bytes.
        """

        def attempt() -> None:
            _transfer(url, file, self.timeout_s)
            info = self._info(url)
            if _stat(url, info) != expected:
                raise DataError(f"{url}: the shard has changed since it was indexed")
            if file.stat().st_size != expected.size:
                raise EOFError(f"{file.stat().st_size} bytes came, of {expected.size}")
            _verify(file, info)

        self._retrying(url, attempt)

    def _info(self, url: Url) -> Mapping[str, Any]:
        filesystem = _filesystem(url.protocol, self.timeout_s)
        if url.is_http:
            return _run(filesystem, asyncio.wait_for(_http_info(filesystem, str(url)), self.timeout_s))
        info: Mapping[str, Any] = self._call(filesystem, "info", filesystem._strip_protocol(str(url)))
        return info

    def _list(self, folder: Url) -> list[Mapping[str, Any]]:
        def attempt() -> list[Mapping[str, Any]]:
            filesystem = _filesystem(folder.protocol, self.timeout_s)
            path = filesystem._strip_protocol(str(folder))
            found: list[Mapping[str, Any]] = self._call(filesystem, "ls", path, detail=True)
            return found

        return self._retrying(folder, attempt)

    def _call(self, filesystem: Any, method: str, *arguments: Any, **named: Any) -> Any:
        """A method of a filesystem, bounded in time where that can be: the others bound their requests themselves."""
        if not isinstance(filesystem, AsyncFileSystem):
            return getattr(filesystem, method)(*arguments, **named)
        call = getattr(filesystem, f"_{method}")(*arguments, **named)
        return _run(filesystem, asyncio.wait_for(call, self.timeout_s))

    def _retrying(self, url: Url, attempt: Callable[[], Result]) -> Result:
        pause_s = FIRST_PAUSE_S
        for number in range(1, self.attempts + 1):
            try:
                return attempt()
            except (DataError, UnreachableError):
                raise
            except Exception as error:
                if isinstance(error, OSError) and error.errno in _OWN_DISK:
                    raise
                reason = f"{type(error).__name__}: {error}".rstrip(": ")
                if _is_lasting(error):
                    raise DataError(f"{url}: {reason}") from error
                if number == self.attempts:
                    tried = f"{number} attempts" if number > 1 else "1 attempt"
                    raise UnreachableError(f"{url}: {tried} failed, the last with {reason}") from error
                wait_s = pause_s * _RANDOM.uniform(0.5, 1.0)  # so that not all nodes come again at the same moment
                logger.warning("%s: attempt %d of %d: %s; again in %.1f s", url, number, self.attempts, reason, wait_s)
                time.sleep(wait_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        raise AssertionError("no attempt was made")


def _filesystem(protocol: str, timeout_s: float) -> Any:
    return _filesystem_of(protocol, timeout_s, os.getpid())


@functools.lru_cache(maxsize=8)
def _filesystem_of(protocol: str, timeout_s: float, process: int) -> Any:
    """A filesystem of this process alone: the event loop behind it does not outlive a fork."""
    options: dict[str, Any] = {"skip_instance_cache": True, "use_listings_cache": False}
    if protocol in ("http", "https"):
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
        options["client_kwargs"] = {"timeout": timeout, "trust_env": True}
    elif protocol == "s3":
        # botocore's own attempts draw from the global generator; s3fs makes some more of its own.
        attempts = {"total_max_attempts": 1}
        options["config_kwargs"] = {"retries": attempts, "connect_timeout": timeout_s, "read_timeout": timeout_s}
    try:
        if protocol == "gs":
            import gcsfs.retry

            gcsfs.retry.random = _RANDOM  # its pauses, too
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = EXTRAS[protocol]
        needed = f"pip install 'effnet[{extra}]'" if extra else str(error)
        raise DataError(f"{protocol}:// cannot be read here: {needed}") from error


def _run(filesystem: Any, work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run_coroutine_threadsafe(work, filesystem.loop).result()


async def _http_info(filesystem: Any, url: str) -> dict[str, Any]:
    """As fsspec names it. Its own ``info`` asks by GET wherever HEAD fails, and takes every failure for a 404."""
    session = await filesystem.set_session()
    place, headers = filesystem.encode_url(url), {"Accept-Encoding": "identity"}
    async with session.head(place, allow_redirects=True, headers=headers) as answer:
        if answer.status not in _NO_HEAD:
            return _from_headers(answer, answer.headers.get("Content-Length"))
    # A signed URL allows GET alone.
    async with session.get(place, headers=headers | {"Range": "bytes=0-0"}) as answer:
        _, _, size = answer.headers.get("Content-Range", "").partition("/")
        return _from_headers(answer, size or answer.headers.get("Content-Length"))


def _from_headers(answer: Any, size: str | None) -> dict[str, Any]:
    answer.raise_for_status()
    encoded = answer.headers.get("Content-Encoding", "identity") != "identity"
    known = size is not None and size.isdigit() and not encoded
    return {"size": size if known else None} | {name: answer.headers.get(name) for name in _HEADERS}


def _transfer(url: Url, file: Path, timeout_s: float) -> None:
    filesystem = _filesystem(url.protocol, timeout_s)
    source = filesystem._strip_protocol(str(url))
    if isinstance(filesystem, AsyncFileSystem):
        _run(filesystem, _watched(filesystem, source, file, timeout_s))
    else:
        filesystem.get_file(source, str(file))


async def _watched(filesystem: Any, source: str, file: Path, timeout_s: float) -> None:
    """A download that is given up when nothing comes for too long, however long it takes in all."""
    callback = fsspec.Callback()
    task = asyncio.ensure_future(filesystem._get_file(source, str(file), callback=callback))
    seen, since = None, time.monotonic()
    while not task.done():
        await asyncio.wait({task}, timeout=min(timeout_s / 4, 1.0))
        now = (callback.value, file.stat().st_size)
        if now != seen:
            seen, since = now, time.monotonic()
        elif time.monotonic() - since > timeout_s and not task.done():
            task.cancel()
            await asyncio.wait({task}, timeout=1.0)
            raise TimeoutError(f"no byte in {timeout_s:g} s, after {now[1]}")
    await task


def _stat(url: Url, info: Mapping[str, Any]) -> Stat:
    size = info.get("size")
    if size is None:
        raise DataError(f"{url}: the server does not say how large it is")
    for name in ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "last_modified"):
        if info.get(name):
            return Stat(int(size), str(info[name]).removeprefix("W/").strip('"'))
    return Stat(int(size), "")


def _verify(file: Path, info: Mapping[str, Any]) -> None:
    """Compare with the checksum that the server has, if any: MD5 by HTTP and Google, SHA-256 by Hugging Face."""
    lfs = info.get("lfs")
    if isinstance(lfs, Mapping) and lfs.get("sha256"):
        name, wanted = "sha256", str(lfs["sha256"])
    else:
        encoded = info.get("Content-MD5") or info.get("md5Hash")
        try:
            name, wanted = "md5", base64.b64decode(str(encoded), validate=True).hex() if encoded else ""
        except binascii.Error:
            return
        if not wanted:
            return
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, name).hexdigest()
    if found != wanted:
        raise EOFError(f"{name} is {found}, the server's is {wanted}")


def _is_lasting(error: Exception) -> bool:
    """Whether the same request will fail again: what is asked for is not there, not allowed, or no request."""
    if type(error).__name__ in _NO_CREDENTIALS:
        return True
    status = getattr(error, "status", getattr(error, "code", None))
    if isinstance(status, int):
        return 400 <= status < 500 and status not in _PASSING_STATUS
    return isinstance(error, (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, ValueError))
