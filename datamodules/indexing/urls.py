"""From what a user writes for shards to a list of files and URLs."""

import errno
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

from configs.problems import DataError
from datamodules.indexing.shard_lists import MAX_LIST_BYTES, parse_shard_list
from datamodules.storage.locations import Shard, Url, is_remote, parse_url, refuse_secrets
from datamodules.storage.remote import Remote

INFO = "_info.json"
MAX_NAMES = 1_000_000
"""That one brace pattern may stand for: more are a slip, and would fill the memory."""
_RANGE = re.compile(r"\{(-?[0-9]{1,99})\.\.(-?[0-9]{1,99})(?=\.\.|\})")
SHOWN = 80
"""Characters of a name that is too long."""


class Expected(NamedTuple):
    """How many samples a list says that a shard has."""

    samples: int
    source: str


class FoundShards(NamedTuple):
    """Shards in order, each once, and what lists say of them."""

    shards: list[Shard]
    expected: dict[Shard, Expected]


def expand(shards: str | Sequence[str], remote: Remote | None = None) -> list[Shard]:
    """As ``find_shards``, without numbers of samples."""
    return find_shards(shards, remote).shards


def find_shards(shards: str | Sequence[str], remote: Remote | None = None) -> FoundShards:
    """The shards in order, each once.

    Args:
        shards: A path or URL, glob, brace pattern (``{0000..1023}``), folder, ``.txt`` list or ``.json`` list, several
            joined by ``::``, or a sequence of these. A ``.txt`` list has one of the others per line, relative to its
            own folder; # begins a comment. A ``.json`` list is timm's ``_info.json``, open_clip's ``sizes.json`` or
            wids'; ``#train`` behind it names one of several splits. A folder on an HTTP server, or with ``#train``
            behind it, stands for the ``_info.json`` in it.
        remote: How servers are reached.

    Raises:
        DataError: If a part matches nothing, names a missing file, is of a kind that is not read, holds a secret, or a
            shard comes twice.
        UnreachableError: If a server does not answer.
    """
    parts = [part for text in ([shards] if isinstance(shards, str) else shards) for part in text.split("::")]
    for part in parts:
        refuse_secrets(part)
    expected: dict[Shard, Expected] = {}
    search = _Search(remote or Remote(), expected)
    found = [shard for part in parts for shard in search.part(part)]
    if not found:
        raise DataError("no shards are named")
    counts = Counter(os.path.abspath(shard) if isinstance(shard, Path) else str(shard) for shard in found)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise DataError(f"shards {', '.join(twice[:3])} come more than once in {shards!r}")
    return FoundShards(found, expected)


class _Search(NamedTuple):
    remote: Remote
    expected: dict[Shard, Expected]

    def part(self, part: str, *, in_list: bool = False) -> list[Shard]:
        if not part.strip():
            raise DataError("an empty name among the shards")
        refuse_secrets(part)
        local = part.removeprefix("file://").removeprefix("file:")
        try:
            found = self._remote(part, in_list=in_list) if is_remote(local) else self._local(local, in_list=in_list)
        except UnicodeDecodeError as error:
            raise DataError(f"list of shards {part}: not a text in UTF-8 ({error})") from None
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise
            raise DataError(f"shards {part[:SHOWN]!r}…: {error.strerror}") from None
        if not found:
            raise DataError(f"shards {part!r} match no file")
        return found

    def _local(self, part: str, *, in_list: bool) -> list[Shard]:
        path = Path(part).expanduser()
        if path.is_dir():
            return [*sorted(path.glob("*.tar"))]
        if path.suffix == ".txt" and path.is_file() and not in_list:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            return [shard for line in _lines(lines) for shard in self.part(_beside(path, line), in_list=True)]
        listing, split = _split_of(part)
        if listing is not None:
            place = Path(listing).expanduser()
            place = place / INFO if place.is_dir() else place
            if not place.is_file():
                raise DataError(f"list of shards {place} does not exist")
            return self._listed(place.read_bytes(), place, split)
        if path.is_file():
            return [path]  # also where its name has braces or brackets in it
        return [shard for name in _braces(str(path)) for shard in _glob(name)]

    def _remote(self, part: str, *, in_list: bool) -> list[Shard]:
        found: list[Shard] = []
        for text in _braces(part):
            listing, split = _split_of(text)
            url = parse_url(listing if listing is not None else text)
            place = url.text.partition("?")[0] if url.is_http else url.text
            if place.endswith(".json") or (split is not None) or (url.is_http and _is_folder(place)):
                url = url if place.endswith(".json") else Url(f"{place.rstrip('/')}/{INFO}")
                found += self._listed(self.remote.read(url, max_bytes=MAX_LIST_BYTES), url, split)
            elif any(char in place for char in ("*[" if url.is_http else "*?[")):
                if url.is_http:
                    raise DataError(f"shards {part!r}: HTTP servers list no files; name them by braces or {INFO}")
                found += self.remote.glob(url)
            elif place.endswith(".txt") and not in_list:
                text = self.remote.read(url, max_bytes=MAX_LIST_BYTES).decode("utf-8", "replace")
                found += [_joined(url, line) for line in _lines(text.splitlines())]
            else:
                found += self.remote.tars(url) if _is_folder(place) else [url]
        return found

    def _listed(self, text: bytes, place: Shard, split: str | None) -> list[Shard]:
        found: list[Shard] = []
        for name, samples in parse_shard_list(text, source=str(place), split=split):
            shard: Shard
            if isinstance(place, Url):
                shard = _joined(place, name)
            else:
                shard = parse_url(name) if is_remote(name) else place.parent / name
                if isinstance(shard, Path) and not shard.is_file():
                    raise DataError(f"{place}: shard {shard} does not exist")
            if samples is not None:
                self.expected[shard] = Expected(samples, str(place))
            found.append(shard)
        return found


def _split_of(part: str) -> tuple[str | None, str | None]:
    """A JSON list or a folder, and the split behind ``#``; nothing where it is neither."""
    place, mark, split = part.partition("#")
    if place.endswith(".json") or (mark and place.endswith("/")):
        return place, split or None
    return None, None


def _is_folder(place: str) -> bool:
    return "." not in place.partition("://")[2].partition("/")[2].rpartition("/")[2]


def _braces(text: str) -> list[str]:
    longest = max((abs(int(last) - int(first)) for first, last in _RANGE.findall(text)), default=0)
    try:
        # It lists each range before it gives the first name.
        names = list(islice(braceexpand(text), MAX_NAMES + 1)) if longest < MAX_NAMES else []
    except ValueError as error:
        raise DataError(f"shards {text!r}: {error}") from None
    if longest >= MAX_NAMES or len(names) > MAX_NAMES:
        raise DataError(f"shards {text!r}: more than {MAX_NAMES:,} names")
    return names


def _lines(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in map(str.strip, lines) if line and not line.startswith("#"))


def _beside(list_file: Path, line: str) -> str:
    relative = (
        not Path(line).expanduser().is_absolute() and "://" not in line and not line.startswith(("pipe:", "file:"))
    )
    return str(list_file.parent / line) if relative else line


def _joined(listing: Url, name: str) -> Url:
    """A name in a remote list: a URL, or relative to the list. It is no pattern, and never a path of this machine."""
    if is_remote(name):
        return parse_url(name)
    if name.startswith(("/", "~", "file:")):
        raise DataError(f"{listing}: shard {name!r} is a path of some machine, not one of the server")
    return parse_url(listing.folder + name)


def _glob(name: str) -> list[Path]:
    path = Path(name)
    if not any(char in name for char in "*?["):
        if not path.is_file():
            raise DataError(f"shard {name} does not exist")
        return [path]
    return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
