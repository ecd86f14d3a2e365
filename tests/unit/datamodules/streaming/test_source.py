"""The source stage: what webdataset would yield, from any place, and nothing from a shard that changed."""

import os
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import webdataset as wds

from configs.problems import DataError, UnreachableError
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.opening import open_index
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Url
from datamodules.storage.remote import Remote
from datamodules.streaming.plans import EvaluationPlan
from datamodules.streaming.shard_reader import RawSample, ShardReader
from datamodules.streaming.source import ShardSource
from tests.conftest import picture
from tests.unit.datamodules.archives import gnu_tar, run_gnu_tar, write_samples, write_tar
from tests.web import FaultyServer

OWN = {"__key__", "__url__", "__index__", "__label__"}


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three shards of 2, 3 and 4 samples."""
    return [write_samples(tmp_path / f"{i}.tar", i + 2, first=10 * i) for i in range(3)]


def read(index: ShardIndex, *samples: int) -> list[RawSample]:
    with closing(ShardReader(index)) as reader:
        return [reader.read(sample) for sample in samples]


def assert_as_webdataset_reads(paths: list[Path]) -> None:
    index = build_index(paths)
    expected = list(wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False))
    assert len(index) == len(expected) > 0
    found = read(index, *range(len(index)))
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert {key: value for key, value in ours.items() if key not in OWN} == {
            key: value for key, value in theirs.items() if not key.startswith("__")
        }
        assert (ours["__key__"], ours["__url__"]) == (theirs["__key__"], theirs["__url__"])
        assert (ours["__index__"], ours["__label__"]) == (number, index.labels[number])
    with closing(ShardReader(index)) as reader:
        assert [reader.key(number) for number in range(len(index))] == [theirs["__key__"] for theirs in expected]


def test_samples_are_those_of_webdataset(three: list[Path]) -> None:
    assert_as_webdataset_reads(three)


def test_samples_of_a_shard_writer_are_those_of_webdataset(tmp_path: Path) -> None:
    with wds.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=3, verbose=0) as writer:
        for i in range(7):
            key = f"n{i}/" + "k" * (30 * i + 1)
            sample = {"jpg": picture(i), "cls": i, "json": {"width": 24}, "caption.txt": f"größe {i}"}
            writer.write({"__key__": key, **sample})
    assert_as_webdataset_reads(sorted(tmp_path.glob("*.tar")))


def test_a_key_longer_than_what_is_read_for_it_is_found(tmp_path: Path) -> None:
    with wds.ShardWriter(str(tmp_path / "%03d.tar"), maxcount=2, verbose=0) as writer:
        for name in ("short", "/".join("k" * 100 for _ in range(60))):
            writer.write({"__key__": name, "jpg": picture(1), "cls": 1})
    assert_as_webdataset_reads([tmp_path / "000.tar"])


def test_a_key_alone_costs_a_part_of_a_remote_shard(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    with wds.ShardWriter(str(tmp_path / "shards" / "%d.tar"), maxcount=9, verbose=0) as writer:
        for i in range(9):
            writer.write({"__key__": "/".join("k" * 100 for _ in range(60 if i == 8 else 1)) + str(i), "cls": 1,
                          "jpg": picture(i, size=200)})  # fmt: skip
    server = FaultyServer(tmp_path / "shards")
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**8, remote=Remote(attempts=1, timeout_s=5.0))
    index = open_index([Url(server.url("0.tar"))], index_dir=str(tmp_path / "indexes"), cache=cache)
    names = [each["__key__"] for each in wds.WebDataset(str(tmp_path / "shards" / "0.tar"), shardshuffle=False)]
    for file in cache.folder.iterdir():
        file.unlink()
    server.sent.clear()

    with closing(ShardReader(index, cache)) as reader:
        assert [reader.key_alone(sample) for sample in range(9)] == [*names[:8], None]
        assert server.sent["/0.tar"] <= 9 * 4096 < index.shard_bytes[0] / 10
        assert not list(cache.folder.glob("*.tar"))
        server.always["/0.tar"] = "503"
        with pytest.raises(UnreachableError):
            reader.key_alone(0)
    server.close()


@pytest.mark.skipif(gnu_tar is None, reason="GNU tar is not installed")
@pytest.mark.parametrize("tar_format", ["gnu", "posix"])
def test_samples_of_gnu_tar_are_those_of_webdataset(tar_format: str, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for i in range(5):
        stem = folder / f"n{i % 2}" / ("x" * 40 * i + f"_{i}")
        stem.parent.mkdir(parents=True, exist_ok=True)
        stem.with_suffix(".JPEG").write_bytes(picture(i))
        stem.with_suffix(".cls").write_text(f"{i}\n")
        stem.with_suffix(".empty").write_bytes(b"")
    run_gnu_tar(folder, tmp_path / "a.tar", f"--format={tar_format}", "--sort=name", ".")
    assert_as_webdataset_reads([tmp_path / "a.tar"])


def test_samples_in_any_order_are_the_same(three: list[Path]) -> None:
    index = build_index(three)
    in_order = read(index, *range(len(index)))
    numbers = np.random.default_rng(0).integers(0, len(index), 50).tolist()
    assert read(index, *numbers) == [in_order[number] for number in numbers]


def test_members_cannot_pose_as_what_the_source_says(tmp_path: Path) -> None:
    members = [("a.jpg", b"j"), ("a.cls", b"3"), ("a.__label__", b"7"), ("a.__index__", b"8"), ("a.__weight__", b"9")]
    index = build_index([write_tar(tmp_path / "a.tar", members)])
    [sample] = read(index, 0)
    assert (sample["__label__"], sample["__index__"], sample["__key__"]) == (3, 0, "a")
    [planned] = ShardSource(index, EvaluationPlan(samples=1, batch_size=1, global_rank=0, world_size=1))
    assert planned["__weight__"] == 1.0


@pytest.fixture
def index(three: list[Path]) -> ShardIndex:
    return build_index(three)


def test_a_shard_that_vanished_is_a_data_error(index: ShardIndex) -> None:
    index.shards[1].unlink()
    read(index, 0)
    with pytest.raises(DataError, match=r"1\.tar: No such file or directory"):
        read(index, 2)


@pytest.mark.parametrize("change", ["cut", "grown", "other samples of the same size", "touched"])
def test_a_shard_that_changed_is_a_data_error(change: str, index: ShardIndex) -> None:
    path = index.shards[0]
    contents = path.read_bytes()
    if change == "cut":
        path.write_bytes(contents[:1024])
    elif change == "grown":
        path.write_bytes(contents + bytes(512))
    elif change == "touched":
        os.utime(path, ns=(0, 0))
    else:
        write_samples(path, 2, first=1)
        assert path.stat().st_size == len(contents)
    with pytest.raises(DataError, match=r"0\.tar: the shard has changed since it was indexed"):
        read(index, 0)


def behind_the_same_time(path: Path, contents: bytes) -> None:
    stat = path.stat()
    path.write_bytes(contents)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def test_other_contents_behind_the_same_size_and_time_are_found_out_where_the_layout_differs(
    index: ShardIndex,
) -> None:
    path = index.shards[1]
    contents = path.read_bytes()
    behind_the_same_time(path, contents[512:] + contents[:512])
    with pytest.raises(DataError, match=r"1\.tar"):
        read(index, 2)
    first = contents[: int(index.offsets[3])]
    behind_the_same_time(path, (contents[int(index.offsets[3]) :] + first)[: len(contents)])
    with pytest.raises(DataError, match=r"1\.tar"):
        read(index, 4)


def test_a_shard_cut_while_it_is_open_is_a_data_error(index: ShardIndex) -> None:
    with closing(ShardReader(index)) as reader:
        reader.read(0)
        os.truncate(index.shards[0], int(index.offsets[1]) + 100)
        with pytest.raises(DataError, match=r"0\.tar: sample 1 should have \d+ bytes, 100 are there"):
            reader.read(1)


def open_tars(folder: Path) -> list[str]:
    """Shards of the folder that this process has open, which may have others open of tests before."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        try:
            found.append(os.readlink(link))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return [name for name in found if name.startswith(f"{folder}/") and name.endswith(".tar")]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_no_more_than_64_shards_are_open_at_once_and_none_after_closing(tmp_path: Path) -> None:
    index = build_index([write_tar(tmp_path / f"{i:03d}.tar", [("a.jpg", b"j")]) for i in range(100)])
    reader = ShardReader(index)
    for sample in (*range(100), *range(100)):
        reader.read(sample)
        assert len(open_tars(tmp_path)) <= 64
    assert len(open_tars(tmp_path)) == 64
    reader.close()
    assert open_tars(tmp_path) == []


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_a_source_closes_its_files_when_it_ends_is_left_or_fails(index: ShardIndex, tmp_path: Path) -> None:
    plan = EvaluationPlan(samples=len(index), batch_size=2, global_rank=0, world_size=1)
    assert len(list(ShardSource(index, plan))) == len(index)
    assert open_tars(tmp_path) == []
    iterator = iter(ShardSource(index, plan))
    next(iterator)
    assert len(open_tars(tmp_path)) == 1
    iterator.close()  # type: ignore[attr-defined]
    assert open_tars(tmp_path) == []
    index.shards[2].unlink()
    with pytest.raises(DataError):
        list(ShardSource(index, plan))
    assert open_tars(tmp_path) == []
