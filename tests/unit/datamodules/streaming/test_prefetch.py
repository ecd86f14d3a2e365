"""Fetching ahead of the reader, whatever the reader is ahead of."""

import threading
from collections.abc import Iterator
from pathlib import Path

from configs.schema import Data
from datamodules.indexing.building import build_index
from datamodules.indexing.splits import shard_cache
from datamodules.indexing.urls import expand
from datamodules.streaming.prefetch import Prefetcher, Visit


def test_what_is_announced_after_its_epoch_is_over_does_not_count_for_ever(shards: Path) -> None:
    index = build_index(expand(f"{shards}/toy-train-*.tar"))  # local shards, of which none is fetched
    drawn = [threading.Event(), threading.Event()]

    def visits() -> Iterator[Visit]:
        drawn[0].set()
        yield 0, 1  # too late: the reader has left that epoch, and will not come to it again
        drawn[1].set()
        yield 5, 3

    prefetcher = Prefetcher(index, shard_cache(Data(train_shards="a", val_shards="b")), visits(), ahead=1)
    try:
        assert drawn[0].wait(60)
        prefetcher.reach(5, 2)
        assert drawn[1].wait(20)
    finally:
        prefetcher.close()
