"""What a user names to be predicted: images, folders, globs and shards, as one numbered sequence."""

import glob
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from configs.problems import DataError
from configs.schema import Data
from configs.schema.section import Modality
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.splits import open_split, shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.storage.locations import is_remote

SUFFIXES: dict[Modality, frozenset[str]] = {
    "image": frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}),
    "text": frozenset({".txt"}),
    "audio": frozenset({".wav", ".flac"}),
}
"""Of the files in a folder that are taken for images; a file that is named itself may have any."""
SHARD = ".tar"
WILDCARDS = "*?["


@dataclass(frozen=True)
class Inputs:
    """Files first, then the samples of shards, each group in the order in which it was named.

    Attributes:
        files: Images.
        index: Of the shards; None without any.
    """

    files: tuple[Path, ...]
    index: ShardIndex | None

    def __len__(self) -> int:
        """Images of all."""
        return len(self.files) + (len(self.index) if self.index is not None else 0)


def find_inputs(paths: Sequence[str], data: Data, *, listed: Sequence[str] = ()) -> Inputs:
    """Find out what there is to predict.

    A folder stands for the images in it and below, and for the shards in it. A file that is not there counts as an
    image that cannot be read.

    Args:
        paths: Images, folders, globs (``**`` too), shards of all kinds that ``data.val_shards`` takes.
        data: How shards are read.
        listed: More images and shards, which are no globs, whatever is in their names.

    Raises:
        DataError: If a folder or a glob has nothing to predict, or shards are damaged.
        UnreachableError: If a server does not answer.
    """
    files: list[Path] = []
    shards: list[str] = []
    for text in paths:
        for place in _expanded(text, SUFFIXES[data.modality]):
            (shards if _is_shard(place) else files).append(place)  # type: ignore[arg-type]
    for text in listed:
        (shards if _is_shard(text) else files).append(text)  # type: ignore[arg-type]
    index = None
    if shards:
        cache = shard_cache(data)
        located = find_shards(shards, cache.remote)
        index = open_split(located, cache=cache, index_dir=data.index_dir, modality=data.modality)
    found = Inputs(tuple(map(Path, files)), index)
    if not len(found):
        raise DataError("there is nothing to predict: name images, folders, globs or shards")
    return found


def _expanded(text: str, suffixes: frozenset[str]) -> Iterator[str]:
    path = Path(text).expanduser()
    if is_remote(text) or path.is_file():
        yield text if is_remote(text) else str(path)
    elif path.is_dir():
        found = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in suffixes and each.is_file()]
        found += sorted(path.glob(f"*{SHARD}"))
        if not found:
            raise DataError(f"{text}: no image and no shard is in this folder")
        yield from map(str, found)
    elif SHARD in text:
        yield text  # braces, a list's split, globs: find_shards knows them all
    elif any(character in text for character in WILDCARDS):
        matches = [each for each in sorted(glob.glob(str(path), recursive=True)) if Path(each).is_file()]
        if not matches:
            raise DataError(f"{text!r} matches no file")
        yield from matches
    else:
        yield str(path)


def _is_shard(text: str) -> bool:
    return is_remote(text) or SHARD in Path(text).name
