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
    """What a record says: the settings, and the finished shards. From a damaged line on, shards are written again."""
    lines = record.read_text(encoding="utf-8", errors="replace").splitlines() if record.is_file() else []
    header, shards = None, dict[str, Written]()
    for number, line in enumerate(lines):
        try:
            entry = json.loads(line)
            if number == 0:
                header = {**entry, "shards": int(entry["shards"])}
            else:
                shard = Written(**entry | {"left_out": [(key, reason) for key, reason in entry["left_out"]]})
                shards[shard.shard] = shard
        except (ValueError, TypeError, KeyError):
            break
    return header, shards


def differing(header: dict[str, Any], source: dict[str, Any]) -> list[str]:
    """The settings that are not the record's."""
    return [key for key, value in source.items() if header.get(key) != value]
