"""The index of as many samples as ImageNet-1k has. Prints its time; run it with `-m slow -s`."""

import os
import time
from pathlib import Path

import pytest

from datamodules.indexing.opening import open_index
from tests.unit.datamodules.archives import BLOCK, END, header

SHARDS, SAMPLES, IMAGE_BYTES = 1024, 1251, 110_000
DIFFERENT = 64


def write_sparse(path: Path, first: int) -> None:
    """A shard with ImageNet's sizes, whose images are holes that take no room on the disk."""
    with path.open("wb") as file:
        position = 0
        for number in range(first, first + SAMPLES):
            file.seek(position)
            file.write(header(f"{number:08d}.jpg", size=b"%011o\0" % IMAGE_BYTES))
            position += BLOCK + -(-IMAGE_BYTES // BLOCK) * BLOCK
            file.seek(position)
            file.write(header(f"{number:08d}.cls", size=b"%011o\0" % 3) + b"%03d" % (number % 1000) + bytes(BLOCK - 3))
            position += 2 * BLOCK
        file.seek(position)
        file.write(END)


@pytest.mark.slow
def test_a_million_samples_are_indexed(tmp_path: Path) -> None:
    shards = [tmp_path / f"imagenet1k-train-{number:04d}.tar" for number in range(SHARDS)]
    for number, path in enumerate(shards):
        if number < DIFFERENT:
            write_sparse(path, number * SAMPLES)
        else:
            os.link(shards[number % DIFFERENT], path)
    done: list[int] = []
    begun = time.monotonic()
    index = open_index(shards, progress=done.append)
    scanned = time.monotonic()
    again = open_index(shards)
    loaded = time.monotonic()
    [file] = tmp_path.glob(".effnet-index-*")
    print(
        f"\n{len(index):,} samples in {SHARDS} shards on {os.cpu_count()} cores: scanned in {scanned - begun:.1f} s, "
        f"{file.stat().st_size / 1e6:.1f} MB, opened again in {loaded - scanned:.2f} s"
    )
    assert len(index) == SHARDS * SAMPLES
    assert sum(done) == SHARDS
    assert again.digest == index.digest
