"""How fast shards are read, and how large their samples are."""

import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from configs.problems import DataError
from configs.schema import Data
from datamodules.inspecting.read_rate import read_rate, sample_bytes
from tests.web import FaultyServer


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    started = FaultyServer(shards)
    yield started
    started.close()


def data(shards: str) -> Data:
    return Data(train_shards=shards, val_shards="none.tar", download_timeout_s=5.0)


def test_each_reader_has_a_shard_of_its_own_and_each_node_begins_elsewhere(server: FaultyServer, shards: Path) -> None:
    urls = data(server.url("toy-train-0000{0..4}.tar"))
    rate = read_rate(urls, node_rank=0, num_nodes=2, readers=2, seconds=5.0)

    assert (rate.read_shards, rate.remote) == (2, True)
    assert set(server.sent) == {"/toy-train-00000.tar", "/toy-train-00002.tar"}
    assert rate.read_bytes == sum((shards / name.lstrip("/")).stat().st_size for name in server.sent)
    assert rate.bytes_per_s > 0
    read_rate(urls, node_rank=1, num_nodes=2, readers=1, seconds=5.0)
    assert server.gets("toy-train-00002.tar") == 2


def test_local_shards_are_read_whole_if_there_is_time(shards: Path) -> None:
    rate = read_rate(data(f"{shards}/toy-train-*.tar"), node_rank=0, num_nodes=1, readers=8, seconds=60.0)

    files = list(shards.glob("toy-train-*.tar"))
    assert (rate.read_shards, rate.remote) == (len(files), False)
    assert rate.read_bytes == sum(file.stat().st_size for file in files)


def test_the_bytes_of_a_sample_are_those_of_all_its_files_in_the_archive(shards: Path) -> None:
    contents = (shards / "toy-train-00000.tar").read_bytes()
    whole = sample_bytes(contents)

    assert whole is not None
    with tarfile.open(shards / "toy-train-00000.tar") as archive:
        samples = len({name.partition(".")[0] for name in archive.getnames()})
    assert len(contents) - tarfile.RECORDSIZE <= samples * whole <= len(contents)  # but for the zeros at the end
    half = sample_bytes(contents[: len(contents) // 2])
    assert half == pytest.approx(whole, rel=0.1)
    assert sample_bytes(contents[:600]) is None
    assert sample_bytes(b"") is None


def test_a_shard_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar"):
        read_rate(data(f"{tmp_path}/gone.tar"), node_rank=0, num_nodes=1, readers=1, seconds=1.0)
