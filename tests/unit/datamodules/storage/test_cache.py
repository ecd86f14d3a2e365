"""The cache of a node: each shard fetched once, whole or not at all, within its bytes, whoever is killed when."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.batches import BatchLayout
from configs.problems import DataError, UnreachableError
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.storage import failures, transfer
from datamodules.storage.cache import CacheFullError, ShardCache
from datamodules.storage.locations import Url
from datamodules.storage.remote import Remote
from datamodules.storage.stats import Stat
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import EvaluationPlan, TrainingPlan
from datamodules.streaming.prefetch import Prefetcher, upcoming
from tests.disks import fill, small_disk
from tests.unit.datamodules.archives import write_samples
from tests.web import FaultyServer

SIZE = 50_000
Made = Callable[..., ShardCache]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyServer]:
    """Ten files of 50,000 bytes in each of two folders."""
    for place in ("train", "val"):
        (tmp_path / "served" / place).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "served" / place / f"{i}.tar").write_bytes(os.urandom(SIZE))
    made = FaultyServer(tmp_path / "served")
    yield made
    made.close()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)


@pytest.fixture
def made(tmp_path: Path) -> Made:
    def make(shards: float = 100, *, attempts: int = 2, timeout_s: float = 5.0) -> ShardCache:
        access = Remote(attempts=attempts, timeout_s=timeout_s)
        return ShardCache(folder=tmp_path / "cache", max_bytes=int(shards * SIZE), remote=access)

    return make


def named(server: FaultyServer, name: str) -> tuple[Url, Stat]:
    url = Url(server.url(name))
    return url, Remote().stat(url)


def contents(cache: ShardCache, shard: tuple[Url, Stat]) -> bytes:
    descriptor = cache.open(*shard)
    try:
        return os.pread(descriptor, 10 * SIZE, 0)
    finally:
        os.close(descriptor)


def kept(cache: ShardCache) -> list[str]:
    return sorted(file.name for file in cache.folder.iterdir())


def test_a_shard_is_fetched_once_and_then_read_here(server: FaultyServer, made: Made) -> None:
    cache, shard = made(), named(server, "train/0.tar")
    for _ in range(3):
        assert contents(cache, shard) == (server.folder / "train/0.tar").read_bytes()
    assert server.gets("train/0.tar") == 1
    assert kept(cache) == [cache.path(*shard).name]


def test_shards_of_one_name_and_versions_of_one_shard_do_not_meet(server: FaultyServer, made: Made) -> None:
    cache = made()
    train, val = named(server, "train/0.tar"), named(server, "val/0.tar")
    assert contents(cache, train) != contents(cache, val)
    (server.folder / "train/0.tar").write_bytes(bytes(SIZE))
    assert contents(cache, named(server, "train/0.tar")) == bytes(SIZE)
    assert len(kept(cache)) == 3


def test_a_shard_that_changed_since_is_refused_and_leaves_nothing(server: FaultyServer, made: Made) -> None:
    cache, shard = made(), named(server, "train/0.tar")
    (server.folder / "train/0.tar").write_bytes(bytes(SIZE))
    with pytest.raises(DataError, match=r"train/0\.tar: the shard has changed since it was indexed"):
        cache.open(*shard)
    assert kept(cache) == []


@pytest.mark.parametrize("fault", ["503", "truncate", "short", "reset"])
def test_a_download_that_fails_leaves_nothing(fault: str, server: FaultyServer, made: Made) -> None:
    cache, shard = made(), named(server, "train/0.tar")
    server.always["/train/0.tar"] = fault
    with pytest.raises(UnreachableError, match="2 attempts failed"):
        cache.open(*shard)
    assert kept(cache) == []
    del server.always["/train/0.tar"]
    assert len(contents(cache, shard)) == SIZE


def test_the_oldest_give_way_to_the_newest(server: FaultyServer, made: Made) -> None:
    cache = made(3)
    shards = [named(server, f"train/{i}.tar") for i in range(5)]
    for number in (0, 1, 2, 0, 3):  # 0 is used again, so 1 is the oldest when 3 comes
        contents(cache, shards[number])
        time.sleep(0.01)
    assert kept(cache) == sorted(cache.path(*shards[number]).name for number in (0, 2, 3))
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= cache.max_bytes


def test_a_shard_that_is_open_stays_and_counts(server: FaultyServer, made: Made) -> None:
    cache = made(2, timeout_s=0.3)
    shards = [named(server, f"train/{i}.tar") for i in range(4)]
    held = [cache.open(*shard) for shard in shards[:2]]
    with pytest.raises(CacheFullError, match=r"data\.cache_bytes is 100,000: .* 2 shards in .*; 150,000 would do"):
        cache.open(*shards[2])
    os.close(held[0])
    contents(cache, shards[2])
    contents(cache, shards[3])
    assert cache.path(*shards[1]).exists()
    assert not cache.path(*shards[0]).exists()
    os.close(held[1])


def test_a_shard_larger_than_the_whole_cache_is_refused_at_once(server: FaultyServer, made: Made) -> None:
    shard, begun = named(server, "train/0.tar"), time.monotonic()
    with pytest.raises(CacheFullError, match=r"data\.cache_bytes is 25,000"):
        made(0.5, timeout_s=60).open(*shard)
    assert time.monotonic() - begun < 5
    assert server.gets("train/0.tar") == 0


def test_a_reader_that_must_gives_way_itself(server: FaultyServer, made: Made) -> None:
    cache = made(2)
    held = [cache.open(*named(server, f"train/{i}.tar")) for i in range(2)]

    def give_way() -> bool:
        os.close(held.pop(0))
        return True

    held.append(cache.open(*named(server, "train/2.tar"), give_way=give_way))
    assert len(held) == 2
    for descriptor in held:
        os.close(descriptor)


def test_a_folder_that_cannot_be_used_is_named_with_its_setting(
    server: FaultyServer, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = named(server, "train/0.tar")
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(DataError, match=r"data\.cache_dir .*cache cannot be used: "):
        made().open(*shard)
    (tmp_path / "cache").unlink()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(transfer.Transfer, "attempt", full)
    with pytest.raises(DataError, match=r"data\.cache_dir .* cannot be used: No space left on device"):
        made().open(*shard)
    assert kept(made()) == []


# Several processes and threads


def fetch(cache: ShardCache, shard: tuple[Url, Stat], barrier: Any, results: Any) -> None:
    barrier.wait()
    results.put(contents(cache, shard))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_two_processes_fetch_a_shard_once(method: str, server: FaultyServer, made: Made) -> None:
    cache, shard = made(), named(server, "train/0.tar")
    server.delay_s = 0.5
    context = multiprocessing.get_context(method)
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=fetch, args=(cache, shard, barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [results.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert found == 2 * [(server.folder / "train/0.tar").read_bytes()]
    assert server.gets("train/0.tar") == 1
    assert kept(cache) == [cache.path(*shard).name]


def test_threads_of_one_process_fetch_a_shard_once(server: FaultyServer, made: Made) -> None:
    cache, shard = made(), named(server, "train/0.tar")
    server.delay_s = 0.3
    threads = [threading.Thread(target=contents, args=(cache, shard)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert server.gets("train/0.tar") == 1


def test_many_processes_in_a_small_cache_get_what_they_ask_for(server: FaultyServer, made: Made) -> None:
    cache = made(4)
    shards = [named(server, f"train/{i}.tar") for i in range(10)]
    expected = [(server.folder / f"train/{i}.tar").read_bytes() for i in range(10)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=read_at_random, args=(cache, shards, expected, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= cache.max_bytes


def read_at_random(cache: ShardCache, shards: list[tuple[Url, Stat]], expected: list[bytes], seed: int) -> None:
    for number in np.random.default_rng(seed).integers(0, len(shards), 40).tolist():
        assert contents(cache, shards[number]) == expected[number]


def test_a_process_killed_in_mid_download_leaves_no_half_shard_and_no_lock(server: FaultyServer, made: Made) -> None:
    cache, shard = made(1), named(server, "train/0.tar")
    server.faults["/train/0.tar"] = ["stall"]
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=contents, args=(cache, shard))
    process.start()
    deadline = time.monotonic() + 20
    while not any(file.suffix == ".tmp" and file.stat().st_size for file in cache.folder.glob("*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert not cache.path(*shard).exists()
    begun = time.monotonic()
    # What it has left would fill the cache, which has room for one shard.
    assert contents(cache, shard) == (server.folder / "train/0.tar").read_bytes()
    assert time.monotonic() - begun < 2
    assert kept(cache) == [cache.path(*shard).name]


def test_a_fork_of_a_process_that_has_fetched_can_fetch(server: FaultyServer, made: Made) -> None:
    cache = made()
    contents(cache, named(server, "train/0.tar"))
    context = multiprocessing.get_context("fork")
    process = context.Process(target=contents, args=(cache, named(server, "train/1.tar")))
    process.start()
    process.join(timeout=20)
    assert process.exitcode == 0
    assert server.gets("train/1.tar") == 1


# Prefetching


@pytest.fixture
def index(server: FaultyServer, tmp_path: Path, made: Made) -> ShardIndex:
    for i in range(10):
        write_samples(server.folder / "train" / f"{i}.tar", 5, first=5 * i)
    found = build_index([Url(server.url(f"train/{i}.tar")) for i in range(10)], cache=made())
    for file in made().folder.iterdir():
        file.unlink()
    server.requests.clear()
    return found


def training_plan(index: ShardIndex) -> TrainingPlan:
    order = TrainingOrder(index.shard_samples, seed=3, global_batch_size=8, num_lanes=2, window_shards=2)
    return TrainingPlan(order, BatchLayout(global_batch_size=8, micro_batch_size=4, world_size=1), 0)


@pytest.mark.parametrize(("first", "stride"), [(0, 1), (3, 1), (1, 2)])
def test_what_comes_is_named_in_the_order_in_which_it_is_read(first: int, stride: int, index: ShardIndex) -> None:
    plan = training_plan(index)
    wanted: dict[tuple[int, int], None] = {}
    for number in range(first, 60, stride):
        batch = plan.batch(number)
        for sample, epoch in zip(batch.samples.tolist(), batch.epochs.tolist(), strict=True):
            wanted.setdefault((epoch, index.shard_of(sample)))
    visits = upcoming(index, plan, first=first, stride=stride)
    assert [next(visits) for _ in wanted] == list(wanted)
    evaluation = EvaluationPlan(samples=len(index), batch_size=4, global_rank=1, world_size=2)
    assert list(upcoming(index, evaluation, first=0, stride=1)) == [(0, shard) for shard in range(5, 10)]


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_shards_are_fetched_ahead_of_the_reader_and_no_further(
    index: ShardIndex, server: FaultyServer, made: Made
) -> None:
    cache, order = made(), list(upcoming(index, EvaluationPlan(50, 4, 0, 1), first=0, stride=1))
    prefetcher = Prefetcher(index, cache, iter(order), ahead=3)
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 3)
    time.sleep(0.2)
    assert [server.gets(f"train/{i}.tar") for i in range(10)] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 0]
    for visit in order[:2]:
        prefetcher.reach(*visit)
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 5)
    prefetcher.close()
    prefetcher.reach(*order[2])
    time.sleep(0.2)
    assert sum(server.gets(f"train/{i}.tar") for i in range(10)) == 5


def test_prefetching_leaves_errors_to_the_reader(index: ShardIndex, server: FaultyServer, made: Made) -> None:
    cache = made()
    server.always["/train/1.tar"] = "404"
    prefetcher = Prefetcher(index, cache, iter([(0, 1), (0, 2), (0, 3)]), ahead=3)
    wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 2)
    prefetcher.close()
    assert server.gets("train/1.tar") == 1


def test_prefetching_does_not_push_out_what_is_open(index: ShardIndex, server: FaultyServer, made: Made) -> None:
    size = int(index.shard_bytes[0])
    cache = ShardCache(folder=made().folder, max_bytes=2 * size, remote=made().remote)
    held = [cache.open(index.shards[i], Stat(size, index.shard_tags[i])) for i in range(2)]  # type: ignore[arg-type]
    url = index.shards[2]
    assert isinstance(url, Url)
    assert not cache.prefetch(url, Stat(size, index.shard_tags[2]))
    assert server.gets("train/2.tar") == 0
    for descriptor in held:
        os.close(descriptor)
    assert cache.prefetch(url, Stat(size, index.shard_tags[2]))


def test_a_disk_that_is_full_for_a_while_does_not_end_prefetching(
    index: ShardIndex, server: FaultyServer, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "cache", size_bytes=20 * SIZE) as disk:
        cache = ShardCache(folder=disk / "shards", max_bytes=100 * SIZE, remote=Remote(attempts=2, timeout_s=5.0))
        cache.folder.mkdir()
        filler, failed = fill(disk), threading.Event()

        def visits() -> Iterator[tuple[int, int]]:
            yield 0, 1
            assert failed.wait(60)
            yield 0, 2

        prefetcher = Prefetcher(index, cache, visits(), ahead=1)  # one thread
        time.sleep(0.5)
        assert list(cache.folder.glob("*.tar")) == []
        filler.unlink()
        failed.set()
        prefetcher.reach(0, 1)
        wait_until(lambda: len(list(cache.folder.glob("*.tar"))) == 1)
        prefetcher.close()
