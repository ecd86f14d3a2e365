"""The cache of remote shards that all processes of a node share: each shard comes once, and whole or not at all.

A folder on a local disk. An entry's name is a hash of URL, size and tag: another version is another entry. Readers
hold a shared lock on the file that they read and writers an exclusive one on theirs, which the kernel releases when a
process dies: what is not locked may be removed.
"""

import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from configs.problems import DataError
from datamodules.storage.locations import Url
from datamodules.storage.locks import file_lock, flock, is_at
from datamodules.storage.remote import Remote
from datamodules.storage.stats import Stat
from datamodules.storage.traffic import TrafficWriter

_TEMPORARY = re.compile(r"[0-9a-f]{32}\.(\d+)\.[0-9a-f]{32}\.tmp")
_LEDGER = "ledger"
_FULL_PAUSE_S = 0.1


class CacheFullError(DataError):
    """The shards that are in use leave no room for one more."""


class _Entry(NamedTuple):
    path: Path
    size: int  # that it has, or will have
    used_ns: int
    whole: bool


@dataclass(frozen=True, kw_only=True)
class ShardCache:
    """Remote shards as local files. Without ``traffic`` it holds settings alone, and may go to another process.

    Attributes:
        folder: Shared by the processes of a node, on a disk of its own.
        max_bytes: Most that all entries have together, those being written included.
        remote: How shards are fetched.
        traffic: Where what this process does with it is counted, if anywhere.
    """

    folder: Path
    max_bytes: int
    remote: Remote
    traffic: TrafficWriter | None = None

    def path(self, url: Url, stat: Stat) -> Path:
        """Where this version of a shard is kept."""
        text = f"{url}\0{stat.size}\0{stat.tag}".encode("utf-8", "surrogateescape")
        return self.folder / f"{hashlib.sha256(text).hexdigest()[:32]}.tar"

    def open(self, url: Url, stat: Stat, *, give_way: Callable[[], bool] = lambda: False) -> int:
        """A descriptor of the shard, fetched if need be. While it is open, the shard stays where it is.

        Args:
            url: The shard.
            stat: Its version.
            give_way: Called when there is no room: closes another shard of the caller's, if there is one. Otherwise
                other processes have as long to do so as a server has to answer.

        Raises:
            CacheFullError: If there is no room for it.
            DataError: If the shard is gone or has changed, or the folder cannot be written.
            UnreachableError: If the server does not give it.
        """
        with self._usable():
            descriptor = self._open(self.path(url, stat))
        if descriptor is not None:
            if self.traffic is not None:
                self.traffic.add(hits=1)
            return descriptor
        with self.traffic.waiting() if self.traffic is not None else nullcontext():
            return self._fetch_when_room(url, stat, give_way)

    def _fetch_when_room(self, url: Url, stat: Stat, give_way: Callable[[], bool]) -> int:
        until = time.monotonic() + self.remote.timeout_s
        while True:
            try:
                descriptor = self._fetch(url, stat, wait=True)
            except CacheFullError:
                if not give_way():
                    if stat.size > self.max_bytes or time.monotonic() > until:
                        raise
                    time.sleep(_FULL_PAUSE_S)
                continue
            assert descriptor is not None
            return descriptor

    def prefetch(self, url: Url, stat: Stat) -> bool:
        """Fetch a shard that will be needed. False if another process is at it or there is no room."""
        try:
            descriptor = self._open(self.path(url, stat)) or self._fetch(url, stat, wait=False)
        except CacheFullError:
            return False
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def _open(self, path: Path) -> int | None:
        with suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            if flock(descriptor, exclusive=False, wait=False) and is_at(descriptor, path):
                os.utime(descriptor)
                return descriptor
            os.close(descriptor)  # it is being removed
        return None

    def _fetch(self, url: Url, stat: Stat, *, wait: bool) -> int | None:
        path = self.path(url, stat)
        with self._usable(), file_lock(path.with_suffix(".lock"), wait=wait) as held:
            descriptor = self._open(path)  # who waited for the lock may find that all is done
            if descriptor is not None or not held:
                return descriptor
            temporary, descriptor = self._reserve(path, stat.size)
            try:
                self.remote.download(url, temporary, stat, arrived=self._arrived)
                os.fsync(descriptor)
                flock(descriptor, exclusive=False, wait=True)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            return descriptor

    def _reserve(self, path: Path, size: int) -> tuple[Path, int]:
        """An empty file for a shard that is to come, locked, when older entries have made room for it.

        Raises:
            CacheFullError: If those that are not in use do not suffice.
        """
        with file_lock(self.folder / _LEDGER):
            entries = sorted(self._entries(), key=lambda entry: (entry.whole, entry.used_ns))
            excess = sum(entry.size for entry in entries) + size - self.max_bytes
            in_use = 0
            for entry in entries:
                # A temporary file that nobody holds is what a killed process left.
                if (excess > 0 or not entry.whole) and self._remove(entry):
                    excess -= entry.size
                    if self.traffic is not None and entry.whole:
                        self.traffic.add(evictions=1)
                elif excess > 0:
                    in_use += 1
            if excess > 0:
                raise CacheFullError(
                    f"data.cache_bytes is {self.max_bytes:,}: too little for {path.name} of {size:,} bytes beside the "
                    f"{in_use} shards in {self.folder} that are in use; {self.max_bytes + excess:,} would do"
                )
            temporary = path.with_name(f"{path.stem}.{size}.{uuid.uuid4().hex}.tmp")
            descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            flock(descriptor, exclusive=True, wait=True)
            return temporary, descriptor

    def _entries(self) -> Iterator[_Entry]:
        for file in os.scandir(self.folder):
            temporary = _TEMPORARY.fullmatch(file.name)
            if temporary or file.name.endswith(".tar"):
                with suppress(FileNotFoundError):
                    stat = file.stat()
                    size = int(temporary[1]) if temporary else stat.st_size
                    yield _Entry(Path(file.path), size, stat.st_mtime_ns, whole=not temporary)

    def _remove(self, entry: _Entry) -> bool:
        try:
            descriptor = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return True
        try:
            if not flock(descriptor, exclusive=True, wait=False):
                return False
            entry.path.unlink(missing_ok=True)
            return True
        finally:
            os.close(descriptor)

    def _arrived(self, size: int) -> None:
        if self.traffic is not None:
            self.traffic.add(network_bytes=size)

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Turn what is wrong with the folder into a message that names the setting."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            yield
        except OSError as error:
            raise DataError(f"data.cache_dir {self.folder} cannot be used: {error.strerror or error}") from error
