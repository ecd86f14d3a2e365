"""Filesystems of fsspec, one of each kind in each process."""

import asyncio
import functools
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

from configs.problems import DataError
from datamodules.storage.failures import RANDOM
from datamodules.storage.locations import EXTRAS, Url

Result = TypeVar("Result")


def filesystem(protocol: str, timeout_s: float) -> Any:
    """The filesystem of this process for a protocol, whose requests wait so long for an answer.

    Raises:
        DataError: If what it needs is not installed.
    """
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

            gcsfs.retry.random = RANDOM  # its pauses, too
        return fsspec.filesystem(protocol, **options)
    except ImportError as error:
        extra = EXTRAS[protocol]
        needed = f"pip install 'effnet[{extra}]'" if extra else str(error)
        raise DataError(f"{protocol}:// cannot be read here: {needed}") from error


def run(filesystem: Any, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for what runs in the event loop of a filesystem."""
    return asyncio.run_coroutine_threadsafe(work, filesystem.loop).result()


def place(url: Url, timeout_s: float) -> str:
    """What the filesystem of a URL calls it."""
    name: str = filesystem(url.protocol, timeout_s)._strip_protocol(str(url))
    return name


def call(url: Url, method: str, *, timeout_s: float, **named: Any) -> Any:
    """A method of a URL's filesystem, for it. Bounded in time where that can be: others bound their requests alone."""
    access = filesystem(url.protocol, timeout_s)
    if not isinstance(access, AsyncFileSystem):
        return getattr(access, method)(place(url, timeout_s), **named)
    work = getattr(access, f"_{method}")(place(url, timeout_s), **named)
    return run(access, asyncio.wait_for(work, timeout_s))
