"""What servers say of a file: its size, what tells its versions apart, and a checksum."""

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from configs.problems import DataError
from datamodules.storage.filesystems import call, filesystem, run
from datamodules.storage.locations import Url

_NO_HEAD = (403, 405, 501)
_HEADERS = ("ETag", "Content-MD5", "Last-Modified")


class Stat(NamedTuple):
    """What tells one version of a remote file from another.

    Attributes:
        size: Bytes.
        tag: The server's own: ETag, hash or time of modification; empty where it has none.
    """

    size: int
    tag: str


def describe(url: Url, timeout_s: float) -> Mapping[str, Any]:
    """All that a server says of a file, as fsspec names it."""
    if url.is_http:
        access = filesystem(url.protocol, timeout_s)
        return run(access, asyncio.wait_for(_http_info(access, str(url)), timeout_s))
    info: Mapping[str, Any] = call(url, "info", timeout_s=timeout_s)
    return info


def stat_of(url: Url, info: Mapping[str, Any]) -> Stat:
    """Size and tag, of what a server says.

    Raises:
        DataError: If it does not say how large the file is.
    """
    size = info.get("size")
    if size is None:
        raise DataError(f"{url}: the server does not say how large it is")
    for name in ("ETag", "etag", "blob_id", "md5Hash", "Last-Modified", "LastModified", "last_modified"):
        if info.get(name):
            return Stat(int(size), str(info[name]).removeprefix("W/").strip('"'))
    return Stat(int(size), "")


def verify(file: Path, info: Mapping[str, Any]) -> None:
    """Compare with the checksum that the server has, if any: MD5 by HTTP and Google, SHA-256 by Hugging Face.

    Raises:
        EOFError: If it differs.
    """
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
