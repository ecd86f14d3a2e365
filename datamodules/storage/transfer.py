"""From a server to a file of this machine."""

import asyncio
import time
from pathlib import Path
from typing import Any

import fsspec
from fsspec.asyn import AsyncFileSystem

from datamodules.storage.filesystems import filesystem, run
from datamodules.storage.locations import Url


def transfer(url: Url, file: Path, timeout_s: float) -> None:
    """Write the bytes of a remote file to ``file``, which exists."""
    access = filesystem(url.protocol, timeout_s)
    source = access._strip_protocol(str(url))
    if isinstance(access, AsyncFileSystem):
        run(access, _watched(access, source, file, timeout_s))
    else:
        access.get_file(source, str(file))


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
