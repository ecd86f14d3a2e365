"""From what a user writes for shards to a list of files."""

from collections.abc import Sequence
from pathlib import Path

from braceexpand import braceexpand

from configs.problems import DataError


def expand(shards: str | Sequence[str]) -> list[Path]:
    """The shards in order, each once.

    Args:
        shards: A path, glob, brace pattern (``{0000..1023}``), folder or ``.txt`` list, several joined by ``::``, or a
            sequence of these.

    Raises:
        DataError: If a part matches nothing, names a missing file, is remote, or a shard comes twice.
    """
    parts = [part for text in ([shards] if isinstance(shards, str) else shards) for part in text.split("::")]
    found = [path for part in parts for path in _expand_part(part)]
    twice = sorted({str(path) for path in found if found.count(path) > 1}) if len(set(found)) < len(found) else []
    if twice:
        raise DataError(f"shards {', '.join(twice[:3])} come more than once in {shards!r}")
    return found


def _expand_part(part: str) -> list[Path]:
    if part.startswith("pipe:") or "://" in part.removeprefix("file://"):
        raise DataError(f"shards {part!r}: only files on this machine are read so far")
    part = part.removeprefix("file://").removeprefix("file:")
    path = Path(part).expanduser()
    if path.is_dir():
        files = sorted(path.glob("*.tar"))
    elif path.suffix == ".txt" and path.is_file():
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        files = [
            file for line in lines if line and not line.startswith("#") for file in _expand_part(_beside(path, line))
        ]
    else:
        try:
            names = list(braceexpand(str(path)))
        except ValueError as error:
            raise DataError(f"shards {part!r}: {error}") from None
        files = [file for name in names for file in _glob(name)]
    if not files:
        raise DataError(f"shards {part!r} match no file")
    return files


def _beside(list_file: Path, line: str) -> str:
    relative = not Path(line).is_absolute() and "://" not in line
    return str(list_file.parent / line) if relative else line


def _glob(name: str) -> list[Path]:
    path = Path(name)
    if not any(char in name for char in "*?["):
        if not path.is_file():
            raise DataError(f"shard {name} does not exist")
        return [path]
    return sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
