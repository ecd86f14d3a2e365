"""Shards as commands look at them: opened, named and grouped alike on this machine and on a server."""

import logging
import os
from pathlib import Path
from typing import BinaryIO

from configs.problems import DataError, UnreachableError
from configs.schema import Data
from datamodules.indexing.splits import shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.making.shards import parse_classes, read_classes, split_of
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.stats import Stat

logger = logging.getLogger(__name__)

CLASSES = "classes.json"
_MAX_CLASSES_BYTES = 16 << 20
IMPATIENT = {"download_attempts": 2, "download_timeout_s": 10.0}
"""Of settings of the data: training, and a run that is done, do not wait for long for names of classes."""


def open_shard(shard: Shard, cache: ShardCache | None, version: Stat | None = None) -> BinaryIO:
    """A shard's bytes: of a remote one, those of a version, or of the one that the server has now.

    Raises:
        DataError: If the server has no such shard, or another version of it.
        OSError: If a local one cannot be read.
        UnreachableError: If a server does not answer.
    """
    if isinstance(shard, Path):
        return shard.open("rb")
    if cache is None:
        raise ValueError("remote shards are read through a cache")
    return os.fdopen(cache.open(shard, version or cache.remote.stat(shard)), "rb")


def folder_of(shard: Shard) -> str:
    """Where a shard lies."""
    return shard.folder if isinstance(shard, Url) else str(shard.parent)


def split_name(shard: Shard) -> str:
    """What shards of one split share: their name without its number."""
    return split_of(Path(shard.name))


def class_names(shard: Shard, cache: ShardCache | None) -> list[str] | None:
    """The names of the classes, where ``classes.json`` is beside a shard and a server gives it.

    Raises:
        DataError: If it is not a list of names.
        UnreachableError: If a server does not answer.
    """
    if isinstance(shard, Path):
        return read_classes(shard.parent)
    assert cache is not None
    url = Url(shard.folder + CLASSES)
    contents = cache.remote.read_if_there(url, max_bytes=_MAX_CLASSES_BYTES)
    return parse_classes(contents, source=str(url)) if contents is not None else None


def names_of_classes(data: Data) -> list[str] | None:
    """The names of a run's classes, where ``classes.json`` is beside its shards and has one for each.

    Where shards are gone, a network is still of use: that is a warning, and None.
    """
    try:
        cache = shard_cache(data)
        names = class_names(find_shards(data.val_shards, cache.remote).shards[0], cache)
    except (DataError, UnreachableError) as error:
        logger.warning("classes have numbers for names: %s", error)
        return None
    return names if names is not None and len(names) == data.num_classes else None
