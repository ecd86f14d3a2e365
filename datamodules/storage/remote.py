"""Files on servers, through fsspec: what is known of them, and their bytes.

Owns no place on disk: datamodules/storage/cache.py says where shards are kept.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from configs.problems import DataError
from datamodules.storage.failures import retrying
from datamodules.storage.filesystems import call, place
from datamodules.storage.locations import Url
from datamodules.storage.stats import Stat, describe, stat_of
from datamodules.storage.transfer import Transfer

_AT_ONCE = 16
Result = TypeVar("Result")


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
        return self._retrying(url, lambda: stat_of(url, describe(url, self.timeout_s)))

    def stat_all(self, urls: Sequence[Url]) -> list[Stat]:
        """As ``stat``, in few requests where a server lists folders."""
        folders = {url.folder for url in urls if not url.is_http}
        listed: dict[str, Mapping[str, Any]] = {}
        for folder in folders if len(urls) > len(folders) else ():
            listed |= {str(info["name"]): info for info in self._list(Url(folder))}

        def stat(url: Url) -> Stat:
            info = listed.get(place(url, self.timeout_s))
            return self.stat(url) if info is None else stat_of(url, info)

        with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
            return list(pool.map(stat, urls))

    def tars(self, folder: Url) -> list[Url]:
        """The ``.tar`` files of a folder, by name."""
        names = sorted(str(info["name"]) for info in self._list(folder) if info.get("type") == "file")
        return [Url(f"{folder.protocol}://{name}") for name in names if name.endswith(".tar")]

    def glob(self, pattern: Url) -> list[Url]:
        """The files that a pattern matches, by name."""
        names = self._retrying(pattern, lambda: sorted(call(pattern, "glob", timeout_s=self.timeout_s)))
        return [Url(f"{pattern.protocol}://{name}") for name in names]

    def read(self, url: Url, *, max_bytes: int) -> bytes:
        """The contents of a small file."""
        size = self.stat(url).size
        if size > max_bytes:
            raise DataError(f"{url}: {size} bytes, more than the {max_bytes} that such a file may have")

        contents: bytes = self._retrying(url, lambda: call(url, "cat_file", timeout_s=self.timeout_s))
        return contents

    def read_part(self, url: Url, *, start: int, end: int) -> bytes:
        """Bytes of a file from ``start`` up to ``end``, which is no further than its own."""
        contents: bytes = self._retrying(
            url, lambda: call(url, "cat_file", timeout_s=self.timeout_s, start=start, end=end)
        )
        return contents

    def read_if_there(self, url: Url, *, max_bytes: int) -> bytes | None:
        """As ``read``; None where there is no such file, or none that may be read."""
        try:
            self.stat(url)
        except DataError:
            return None
        return self.read(url, max_bytes=max_bytes)

    def download(self, url: Url, file: Path, expected: Stat, *, arrived: Callable[[int], None] | None = None) -> None:
        """Write a remote file's bytes to ``file``, which exists, and see that they are those of ``expected``.

        An attempt goes on where the last one broke off. ``arrived`` is told of bytes as they come.

        Raises:
            DataError: If the server has another version now, or none.
            OSError: If there is no room on this machine's disk.
            UnreachableError: If the server does not give all bytes.
        """
        self._retrying(url, Transfer(url, file, expected, timeout_s=self.timeout_s, arrived=arrived).attempt)

    def _list(self, folder: Url) -> list[Mapping[str, Any]]:
        found: list[Mapping[str, Any]]
        found = self._retrying(folder, lambda: call(folder, "ls", timeout_s=self.timeout_s, detail=True))
        return found

    def _retrying(self, url: Url, attempt: Callable[[], Result]) -> Result:
        return retrying(url, attempt, attempts=self.attempts)
