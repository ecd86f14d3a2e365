"""What other tools leave beside shards: lists of shards with their numbers of samples, and indexes of single shards.

timm's ``_info.json``, open_clip's ``sizes.json``, wids' ``wids-shard-index-v1``, DALI's ``.idx``.
"""

import json
import re
from typing import Any, NamedTuple

from configs.problems import DataError
from datamodules.indexing.tar import BLOCK

MAX_LIST_BYTES = 64 << 20
_DALI_VERSION = "v1.2"
_DECIMAL = re.compile(r"[0-9]{1,18}")


class ListedShard(NamedTuple):
    """A line of a list.

    Attributes:
        name: A URL, or a path relative to the list.
        samples: How many samples the shard should have; None where the list does not say.
    """

    name: str
    samples: int | None


def parse_shard_list(text: str | bytes, *, source: str, split: str | None = None) -> list[ListedShard]:
    """The shards that a JSON file lists.

    Args:
        text: Its contents.
        source: What to call it in errors.
        split: Which of several splits (timm); None takes the only one.

    Raises:
        DataError: If it is of another form, contradicts itself, or has several splits or not this one.
    """
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{source}: not JSON ({error})") from None
    try:
        return _shards(content, source, split)
    except (KeyError, TypeError, AttributeError):
        known = "_info.json of timm, sizes.json of open_clip and wids-shard-index-v1"
        raise DataError(f"{source}: not a list of shards ({known} are read)") from None


def _shards(content: Any, source: str, split: str | None) -> list[ListedShard]:
    if "splits" in content:
        info = _split(content["splits"], source, split)
        names, counts, total = info["filenames"], info["shard_lengths"], info.get("num_samples")
    elif split is not None:
        raise DataError(f"{source}: has no splits, so none is {split!r}")
    elif content.get("__kind__") == "wids-shard-index-v1":
        entries, total = content["shardlist"], None
        names, counts = [entry["url"] for entry in entries], [entry.get("nsamples") for entry in entries]
    else:
        # open_clip's own has no other keys, but others add a sum
        names = [name for name in content if name.endswith(".tar")]
        counts, total = [content[name] for name in names], None
        if not names:
            raise TypeError
    if len(names) != len(counts):
        raise DataError(f"{source}: {len(names)} shards, but {len(counts)} numbers of samples")
    shards = [ListedShard(name, _count(count)) for name, count in zip(names, counts, strict=True)]
    for shard in shards:
        if ".." in shard.name.split("/"):
            raise DataError(f"{source}: shard {shard.name!r} points out of its folder")
    if total is not None and total != sum(shard.samples or 0 for shard in shards):
        raise DataError(f"{source}: num_samples is {total}, but its shards have {sum(counts)} together")
    return shards


def _count(value: Any) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise TypeError
    return value


def _split(splits: dict[str, Any], source: str, split: str | None) -> Any:
    if split is None and len(splits) == 1:
        return next(iter(splits.values()))
    if split is None or split not in splits:
        problem = "which split is meant" if split is None else f"no split {split!r}"
        raise DataError(f"{source}: {problem}: append one of {', '.join(f'#{name}' for name in splits)}")
    return splits[split]


class DaliMember(NamedTuple):
    """A file in an archive: its name, the byte at which its contents begin, and their number."""

    name: str
    data_offset: int
    size: int


def parse_dali(text: str) -> list[list[DaliMember]] | None:
    """The members of each sample by DALI's index of a shard (v1.2), or None where a scan could find more than it says.

    Source: https://github.com/NVIDIA/DALI, tools/wds2idx.py: a line ``v1.2 <samples>``, then for each sample
    ``extension offset size name`` of each member. Offsets are those of contents, so a header of one block must fill
    each gap: where there is more (long names, folders), only a scan tells what.
    """
    lines = text.splitlines()
    if not lines or lines[0].split() != [_DALI_VERSION, str(len(lines) - 1)]:
        return None
    samples = []
    position = 0
    for line in lines[1:]:
        words = line.split(" ")
        if len(words) % 4:
            return None
        members = []
        for extension, offset, size, name in zip(*(words[i::4] for i in range(4)), strict=True):
            fits = _DECIMAL.fullmatch(offset) and _DECIMAL.fullmatch(size) and name.endswith(f".{extension}")
            if not fits or int(offset) != position + BLOCK:
                return None
            members.append(DaliMember(name, int(offset), int(size)))
            position = int(offset) + -(-int(size) // BLOCK) * BLOCK
        samples.append(members)
    return samples
