"""Filesystems of fsspec, one of each kind in each process."""

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import AsyncFileSystem

from configs.problems import DataError
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
    try:
        return _MAKERS[protocol](timeout_s, {"skip_instance_cache": True, "use_listings_cache": False})
    except ImportError as error:
        extra = EXTRAS[protocol]
        needed = f"pip install 'effnet[{extra}]'" if extra else str(error)
        raise DataError(f"{protocol}:// cannot be read here: {needed}") from error


def _http(timeout_s: float, options: dict[str, Any]) -> Any:
    import aiohttp

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return fsspec.filesystem("http", client_kwargs={"timeout": timeout, "trust_env": True}, **options)


def _s3(timeout_s: float, options: dict[str, Any]) -> Any:
    # botocore's own attempts draw from the global generator, and s3fs's say nothing: ours are enough.
    limits = {"retries": {"total_max_attempts": 1}, "connect_timeout": timeout_s, "read_timeout": timeout_s}
    made = fsspec.filesystem("s3", config_kwargs=limits, **options)
    made.retries = 1
    return made


def _gs(timeout_s: float, options: dict[str, Any]) -> Any:
    import aiohttp
    from gcsfs import core

    class Files(core.GCSFileSystem):  # type: ignore[misc]
        """By the JSON API alone: gcsfs's newest asks for a bucket's kind by gRPC, which does not outlive a fork.

        Its attempts draw from the global generator and say nothing: ours are enough.
        """

        _request = core.GCSFileSystem._request.__wrapped__

    timeout = aiohttp.ClientTimeout(total=None, sock_connect=timeout_s, sock_read=timeout_s)
    return Files(requests_timeout=timeout, session_kwargs={"trust_env": True}, **options)


def _hf(timeout_s: float, options: dict[str, Any]) -> Any:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # one for each shard, in every rank's log
    return fsspec.filesystem("hf", **options)


_MAKERS = {"http": _http, "https": _http, "s3": _s3, "gs": _gs, "hf": _hf}


def run(filesystem: Any, work: Coroutine[Any, Any, Result]) -> Result:
    """Wait for what runs in the event loop of a filesystem."""
    return asyncio.run_coroutine_threadsafe(work, filesystem.loop).result()


def place(url: Url, timeout_s: float) -> str:
    """What the filesystem of a URL calls it."""
    name: str = filesystem(url.protocol, timeout_s)._strip_protocol(str(url))
    return name


def call(url: Url, method: str, *, timeout_s: float, **named: Any) -> Any:
    """A method of a URL's filesystem, for it.

    Raises:
        TimeoutError: If it takes longer.
    """
    if url.protocol == "hf" and method in ("info", "ls"):
        named["refresh"] = True  # it keeps what it has listed, whatever it is told
        if method == "info":
            named["expand_info"] = True  # or what is fresh has no checksum
    access = filesystem(url.protocol, timeout_s)
    if not isinstance(access, AsyncFileSystem):
        return bounded(lambda: getattr(access, method)(place(url, timeout_s), **named), timeout_s=timeout_s)
    work = getattr(access, f"_{method}")(place(url, timeout_s), **named)
    return run(access, asyncio.wait_for(work, timeout_s))


def bounded(work: Callable[[], Result], *, timeout_s: float) -> Result:
    """What a blocking call returns, unless it takes too long: huggingface_hub waits for ever for the Hub's lists.

    Raises:
        TimeoutError: If it does. It then goes on in a thread that no process waits for at its end.
    """
    future: Future[Result] = Future()

    def answer() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        return future.result(timeout_s)
    except TimeoutError:
        if future.done():
            raise
        raise TimeoutError(f"no answer in {timeout_s:g} s") from None
