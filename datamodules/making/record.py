"""What a build keeps of itself: a line of its settings, then one for each finished shard."""

import json
from pathlib import Path
from typing import Any, NamedTuple


class Written(NamedTuple):
    """A finished shard: its name, size in bytes, number of samples, and (key, reason) of images left out."""

    shard: str
    size: int
    samples: int
    left_out: list[tuple[str, str]]


def record_lines(*entries: dict[str, Any]) -> str:
    """Entries as the record has them, one a line."""
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def read_record(record: Path) -> tuple[dict[str, Any] | None, dict[str, Written]]:
    """What a record says: the settings, and the finished shards. A line that was cut off is a shard to write again."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.is_file() else []
    entries = []
    for line in lines:
        try:
            entries.append(json.loads(line))
        except ValueError:
            break
    header = entries[0] if entries else None
    shards = [Written(**entry | {"left_out": list(map(tuple, entry["left_out"]))}) for entry in entries[1:]]
    return header, {shard.shard: shard for shard in shards}


def differing(header: dict[str, Any], source: dict[str, Any]) -> list[str]:
    """The settings that are not the record's."""
    return [key for key, value in source.items() if header.get(key) != value]
