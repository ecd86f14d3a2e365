"""Where a shard is kept: a path of this machine, or a URL of a kind that is read."""

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from configs.checks.data import NO_SECRETS, masked_url
from configs.problems import DataError

EXTRAS = {"http": None, "https": None, "s3": "s3", "gs": "gcs", "hf": None}
"""Protocols that are read, and the extra that each needs."""


@dataclass(frozen=True, order=True)
class Url:
    """A file on a server. Made by ``parse_url`` alone, which checks it."""

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def protocol(self) -> str:
        """What stands before ``://``."""
        return self.text.partition("://")[0]

    @property
    def is_http(self) -> bool:
        """Whether it has a query, and a server that lists nothing."""
        return self.protocol in ("http", "https")

    @property
    def name(self) -> str:
        """Last part of the path."""
        path = unquote(urlsplit(self.text).path) if self.is_http else self.text
        return path.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """All before the name, with a slash at the end."""
        path = self.text.partition("?")[0] if self.is_http else self.text
        return path.rpartition("/")[0] + "/"


Shard = Path | Url
"""Where a shard is kept."""


def is_remote(text: str) -> bool:
    """Whether a name is to be read as a URL: anything that no local path begins with."""
    return "://" in text or text.startswith("pipe:")


def refuse_secrets(text: str) -> None:
    """See that a URL holds no secret: it would be in messages, logs and files.

    Raises:
        DataError: If it does. The secret is not repeated.
    """
    masked = None if text.startswith("pipe:") else masked_url(text)  # commands are refused in other words
    if masked is not None:
        raise DataError(f"shards {masked!r}: accepted are {NO_SECRETS}")


def parse_url(text: str) -> Url:
    """A URL of a kind that is read.

    Raises:
        DataError: If it is of another kind, holds a secret, or its path leads out of where it seems to be.
    """
    refuse_secrets(text)
    protocol, _, rest = text.partition("://")
    if protocol == "gcs":
        protocol = "gs"
    if text.startswith("pipe:"):
        raise DataError(f"shards {_instead_of_pipe(text)}")
    if protocol not in EXTRAS:
        raise DataError(f"shards {text!r}: a path or one of {_accepted()} is read, not {protocol}://")
    url = Url(f"{protocol}://{rest}")
    path = unquote(urlsplit(url.text).path if url.is_http else rest)
    if ".." in path.split("/"):
        raise DataError(f"shards {text!r}: a URL with .. in its path")
    if not rest.strip("/") or "\0" in text:
        raise DataError(f"shards {text!r}: no file or folder is named")
    return url


def _instead_of_pipe(text: str) -> str:
    """What to say of a command, of which no more is shown than its program: the rest may hold a token."""
    program = (text.removeprefix("pipe:").split() or [""])[0]
    inside = re.search(rf"\b(?:{'|'.join(EXTRAS)})://[^\s'\"|;?]+", text)
    found = f"{masked_url(inside[0]) or inside[0]} itself" if inside else f"a path, or one of {_accepted()}"
    return f"pipe:{program} …: pipe: would run a command, which is never done; give {found}"


def _accepted() -> str:
    return ", ".join(f"{protocol}://" for protocol in EXTRAS)
