"""Making an index: of remote shards, by several processes, and after a scan that was cut short."""

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.indexing import opening
from datamodules.indexing import scan as scan_module
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.index_files import index_file
from datamodules.indexing.journal import Journal
from datamodules.indexing.opening import open_index
from datamodules.indexing.scan import Scan, scan_shard
from datamodules.indexing.splits import open_split
from datamodules.indexing.urls import find_shards
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard, Url
from datamodules.storage.remote import Remote
from tests.unit.datamodules.archives import write_samples, write_tar
from tests.web import FaultyServer

COLUMNS = ("shard_bytes", "shard_samples", "offsets", "sizes", "labels")


def assert_same_samples(one: ShardIndex, other: ShardIndex) -> None:
    for name in COLUMNS:
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.digest == other.digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five shards of 2 to 6 samples."""
    for i in range(5):
        write_samples(tmp_path / "shards" / f"{i}.tar", i + 2, first=10 * i)
    return tmp_path / "shards"


@pytest.fixture
def server(folder: Path) -> Iterator[FaultyServer]:
    made = FaultyServer(folder)
    yield made
    made.close()


@pytest.fixture
def cache(tmp_path: Path) -> ShardCache:
    return ShardCache(folder=tmp_path / "cache", max_bytes=10**9, remote=Remote(attempts=2, timeout_s=5))


@pytest.fixture
def index_dir(tmp_path: Path) -> str:
    return str(tmp_path / "indexes")


def paths(folder: Path) -> list[Path]:
    return [folder / f"{i}.tar" for i in range(5)]


def urls(server: FaultyServer) -> list[Url]:
    return [Url(server.url(f"{i}.tar")) for i in range(5)]


# Remote shards


def test_remote_shards_have_the_index_of_local_ones(
    server: FaultyServer, folder: Path, cache: ShardCache, index_dir: str
) -> None:
    made = open_index(urls(server), index_dir=index_dir, cache=cache)
    assert_same_samples(made, build_index(paths(folder)))
    assert made.shard_mtime_ns.tolist() == [0] * 5
    assert len(set(made.shard_tags)) == 5
    scanned: list[int] = []
    again = open_index(urls(server), index_dir=index_dir, cache=cache, progress=scanned.append)
    assert_same_samples(again, made)
    assert again.shard_tags == made.shard_tags
    assert scanned == []
    assert all(server.gets(f"{i}.tar") == 1 for i in range(5))


def test_a_remote_shard_with_another_tag_is_read_again_and_the_others_are_not(
    server: FaultyServer, folder: Path, cache: ShardCache, index_dir: str
) -> None:
    open_index(urls(server), index_dir=index_dir, cache=cache)
    size = (folder / "2.tar").stat().st_size
    write_samples(folder / "2.tar", 4, first=21)
    assert (folder / "2.tar").stat().st_size == size
    new = open_index(urls(server), index_dir=index_dir, cache=cache)
    assert_same_samples(new, build_index(paths(folder)))
    assert [server.gets(f"{i}.tar") for i in range(5)] == [1, 1, 2, 1, 1]


def test_remote_and_local_shards_go_together(
    server: FaultyServer, folder: Path, cache: ShardCache, index_dir: str
) -> None:
    mixed: list[Shard] = [*paths(folder)[:2], *urls(server)[2:]]
    for _ in range(2):
        assert_same_samples(open_index(mixed, index_dir=index_dir, cache=cache), build_index(paths(folder)))
    beside = open_index(mixed, cache=cache)
    assert index_file(mixed, None).parent == folder
    assert_same_samples(beside, build_index(paths(folder)))


def test_a_truncated_remote_shard_is_a_data_error_with_its_url(
    server: FaultyServer, folder: Path, cache: ShardCache, index_dir: str
) -> None:
    (folder / "3.tar").write_bytes((folder / "3.tar").read_bytes()[:2048])
    with pytest.raises(DataError, match=rf"{server.url('3.tar')}: truncated"):
        open_index(urls(server), index_dir=index_dir, cache=cache)


def test_numbers_of_samples_are_checked_against_the_list(server: FaultyServer, folder: Path, cache: ShardCache) -> None:
    for counts in ({"0.tar": 2, "1.tar": 3}, {"0.tar": 2, "1.tar": 4}):
        (folder / "sizes.json").write_text(str(counts).replace("'", '"'))
        for place in (server.url("sizes.json"), str(folder / "sizes.json")):
            found = find_shards(place)
            if counts["1.tar"] == 3:
                assert len(open_split(found, cache=cache, index_dir=str(folder / "index"))) == 5
            else:
                with pytest.raises(DataError, match=r"1\.tar: 3 samples are in it, but .*sizes\.json says 4"):
                    open_split(found, cache=cache, index_dir=str(folder / "index"))


# Several processes


def test_many_shards_are_scanned_by_processes_and_come_out_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = [write_samples(tmp_path / f"{i:02d}.tar", 1 + i % 3, first=3 * i) for i in range(12)]
    expected = build_index(shards)
    monkeypatch.setattr(scan_module, "_MANY", 10)
    monkeypatch.setattr(scan_module, "default_workers", lambda: 2)
    assert_same_samples(build_index(shards), expected)
    write_tar(shards[7], [("a.txt", b"no image")])
    with pytest.raises(DataError, match=r"07\.tar: sample a has \['txt'\]"):
        build_index(shards)


def test_where_no_process_can_be_started_this_one_scans(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> Iterator[tuple[Path, Scan]]:
        yield paths(folder)[3], scan_shard(paths(folder)[3])
        raise ChildProcessError

    expected = build_index(paths(folder))
    monkeypatch.setattr(scan_module, "in_processes", broken)
    assert_same_samples(build_index(paths(folder)), expected)


def _open_slowly(shards: Sequence[Path], index_dir: str, barrier: object, scans: object) -> None:
    def slow(path: Path, *, modality: Modality) -> tuple[Path, Scan]:
        time.sleep(0.05)
        scans.put(path.name)  # type: ignore[attr-defined]
        return path, scan_shard(path, modality=modality)

    scan_module._scan_local = slow
    barrier.wait()  # type: ignore[attr-defined]
    open_index(shards, index_dir=index_dir)


def test_of_several_processes_one_scans_and_the_others_read_its_index(folder: Path, index_dir: str) -> None:
    context = multiprocessing.get_context("fork")
    barrier, scans = context.Barrier(3), context.SimpleQueue()
    processes = [
        context.Process(target=_open_slowly, args=(paths(folder), index_dir, barrier, scans)) for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    scanned = []
    while not scans.empty():
        scanned.append(scans.get())
    assert sorted(scanned) == [f"{i}.tar" for i in range(5)]
    assert len(os.listdir(index_dir)) == 1


# Cut short


def count_scans(monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> list[str]:
    scanned: list[str] = []

    def counted(path: Path, *, modality: Modality) -> tuple[Path, Scan]:
        if len(scanned) == stop_after:
            raise KeyboardInterrupt
        scanned.append(path.name)
        return path, scan_shard(path, modality=modality)

    monkeypatch.setattr(scan_module, "_scan_local", counted)
    return scanned


def test_a_scan_that_is_cut_short_goes_on_where_it_was(
    folder: Path, index_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = build_index(paths(folder))
    with monkeypatch.context() as patch:
        count_scans(patch, stop_after=3)
        with pytest.raises(KeyboardInterrupt):
            open_index(paths(folder), index_dir=index_dir)
    os.utime(paths(folder)[1], ns=(0, 0))
    scanned = count_scans(monkeypatch)
    progress: list[int] = []
    found = open_index(paths(folder), index_dir=index_dir, rescan=True, progress=progress.append)
    assert_same_samples(found, expected)
    assert scanned == ["1.tar", "3.tar", "4.tar"]
    assert sum(progress) == 5
    assert [Path(name).suffix for name in os.listdir(index_dir)] == [".npz"]


def _open_and_wait(shards: Sequence[Path], index_dir: str) -> None:
    def hang(path: Path, *, modality: Modality) -> tuple[Path, Scan]:
        if path.name == "3.tar":
            time.sleep(60)
        return path, scan_shard(path, modality=modality)

    scan_module._scan_local = hang
    open_index(shards, index_dir=index_dir)


def test_a_scan_that_is_killed_leaves_no_lock_and_what_it_has_found(
    folder: Path, index_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = multiprocessing.get_context("fork").Process(target=_open_and_wait, args=(paths(folder), index_dir))
    process.start()
    deadline = time.monotonic() + 20
    while sum(file.stat().st_size > 500 for file in Path(index_dir).glob("*.part")) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    scanned = count_scans(monkeypatch)
    assert_same_samples(open_index(paths(folder), index_dir=index_dir), build_index(paths(folder)))
    assert scanned[:2] == ["3.tar", "4.tar"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "noise", "empty"])
def test_a_damaged_journal_is_used_as_far_as_it_is_whole(damage: str, folder: Path, tmp_path: Path) -> None:
    file, shards = tmp_path / "x.part", paths(folder)
    ends = []
    with Journal(file, shards) as journal:
        for path in shards[:3]:
            journal.append(path, scan_shard(path))
            ends.append(file.stat().st_size)
    contents = bytearray(file.read_bytes())
    if damage == "cut":
        contents = contents[: ends[1] + 30]
    elif damage == "flipped":
        contents[ends[1] + 40] ^= 1
    elif damage == "noise":
        contents = contents[: ends[1]] + os.urandom(500)
    else:
        contents = bytearray()
    file.write_bytes(contents)
    with Journal(file, shards) as journal:
        assert list(journal.scans) == ([] if damage == "empty" else shards[:2])
        journal.append(shards[4], scan_shard(shards[4]))
    with Journal(file, shards) as journal:
        assert journal.scans[shards[4]] == scan_shard(shards[4])
        assert len(journal.scans) == (1 if damage == "empty" else 3)


def test_a_file_system_without_locks_does_without(
    folder: Path, index_dir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("datamodules.storage.locks.fcntl.flock", refuse)
    assert_same_samples(open_index(paths(folder), index_dir=index_dir), build_index(paths(folder)))
    assert [Path(name).suffix for name in os.listdir(index_dir)] == [".npz"]


def test_an_index_of_an_earlier_release_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = open_index(paths(folder))
    file = index_file(paths(folder), None)
    arrays = dict(np.load(file))
    del arrays["shard_tags"]
    np.savez(file, **arrays)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("made again")

    monkeypatch.setattr(opening, "build_index", refuse)
    assert_same_samples(open_index(paths(folder)), made)


def test_what_was_vouched_for_is_still_checked_where_it_is_local(folder: Path, index_dir: str) -> None:
    old = open_index(paths(folder), index_dir=index_dir)
    write_samples(paths(folder)[1], 7)
    found = open_index(paths(folder), index_dir=index_dir, vouched=True)
    assert found.shard_samples[1] == 7
    assert found.shard_samples.tolist() != old.shard_samples.tolist()
