"""Lists of shards as timm, open_clip and wids write them, and DALI's indexes."""

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from configs.problems import DataError
from datamodules.indexing import scan
from datamodules.indexing.scan import scan_shard
from datamodules.indexing.shard_lists import ListedShard, parse_dali, parse_shard_list
from tests.unit.datamodules.archives import header, tar_bytes, write_samples, write_tar

TIMM = {
    "splits": {
        "train": {
            "name": "train",
            "filenames": ["imagenet1k-train-0000.tar", "imagenet1k-train-0001.tar"],
            "shard_lengths": [1252, 1251],
            "num_samples": 2503,
        },
        "validation": {
            "name": "validation",
            "filenames": ["imagenet1k-validation-00.tar"],
            "shard_lengths": [782],
            "num_samples": 782,
        },
    }
}
WIDS = {
    "__kind__": "wids-shard-index-v1",
    "wids_version": 1,
    "name": "imagenet",
    "shardlist": [{"url": "s3://bucket/a.tar", "nsamples": 3, "filesize": 9}, {"url": "b.tar"}],
}


def parse(content: Any, split: str | None = None) -> list[ListedShard]:
    return parse_shard_list(json.dumps(content), source="list.json", split=split)


def test_timms_info_has_splits_with_names_and_lengths() -> None:
    assert parse(TIMM, "train") == [("imagenet1k-train-0000.tar", 1252), ("imagenet1k-train-0001.tar", 1251)]
    assert parse(TIMM, "validation") == [("imagenet1k-validation-00.tar", 782)]
    assert parse({"splits": {"all": TIMM["splits"]["validation"]}}) == [("imagenet1k-validation-00.tar", 782)]


def test_open_clips_sizes_are_names_and_lengths() -> None:
    assert parse({"00000.tar": 10, "00001.tar": 9}) == [("00000.tar", 10), ("00001.tar", 9)]


def test_wids_lists_urls_and_may_leave_lengths_out() -> None:
    assert parse(WIDS) == [("s3://bucket/a.tar", 3), ("b.tar", None)]


@pytest.mark.parametrize(
    ("content", "split", "what"),
    [
        (TIMM, None, "which split is meant: append one of #train, #validation"),
        (TIMM, "test", "no split 'test': append one of #train, #validation"),
        ({"00000.tar": 10}, "train", "has no splits, so none is 'train'"),
        ({"splits": {"a": {"filenames": ["x.tar"], "shard_lengths": []}}}, "a", "1 shards, but 0 numbers"),
        ({"splits": {"a": {"filenames": ["x.tar"], "shard_lengths": [3], "num_samples": 4}}}, "a", "num_samples is 4"),
        ({"splits": {"a": {"filenames": ["x.tar"]}}}, "a", "not a list of shards"),
        ({"splits": 3}, None, "not a list of shards"),
        ({"splits": {"a": {"filenames": [7], "shard_lengths": [3]}}}, "a", "not a list of shards"),
        ({"a.tar": "3"}, None, "not a list of shards"),
        ({"a.tar": -3}, None, "not a list of shards"),
        ({"a.tar": True}, None, "not a list of shards"),
        ({"name": 3}, None, "not a list of shards"),
        ({"__kind__": "wids-shard-index-v1", "shardlist": [{}]}, None, "not a list of shards"),
        ([1], None, "not a list of shards"),
        (None, None, "not a list of shards"),
        ({"../a.tar": 3}, None, "points out of its folder"),
        ({"x/../../a.tar": 3}, None, "points out of its folder"),
    ],
)
def test_a_list_of_another_form_is_a_data_error(content: Any, split: str | None, what: str) -> None:
    with pytest.raises(DataError, match=rf"list\.json: .*{what}"):
        parse(content, split)


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, b"\xff\xfe"])
def test_what_is_no_json_is_a_data_error(text: str | bytes) -> None:
    with pytest.raises(DataError, match=r"list\.json: not JSON"):
        parse_shard_list(text, source="list.json")


# DALI


def write_dali(path: Path) -> Path:
    """What DALI's wds2idx writes for a shard."""
    members = list(scan.read_members(path.open("rb"), length=path.stat().st_size, source=""))
    lines = [f"v1.2 {len(members)}"]
    for key, group in members:
        lines.append(" ".join(f"{ext} {member.data_offset} {member.size} {key}.{ext}" for ext, member in group))
    index = path.with_suffix(".idx")
    index.write_text("\n".join(lines) + "\n")
    return index


@pytest.fixture
def headers_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the headers were read")

    monkeypatch.setattr(scan, "read_members", refuse)


def test_dalis_index_gives_what_a_scan_gives_without_one(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    path = write_samples(tmp_path / "a.tar", 7)
    scanned = scan_shard(path)
    write_dali(path)
    request.getfixturevalue("headers_are_not_read")
    assert scan_shard(path) == scanned


@pytest.mark.parametrize("change", ["older", "fewer", "more", "other version", "other shard", "cut", "empty"])
def test_an_index_of_dalis_that_does_not_fit_is_left_alone(change: str, tmp_path: Path) -> None:
    path = write_samples(tmp_path / "a.tar", 7)
    scanned = scan_shard(path)
    index = write_dali(path)
    lines = index.read_text().splitlines()
    if change == "older":
        index.write_text("\n".join([lines[0], *reversed(lines[1:])]))
        os.utime(index, ns=(0, 0))
    elif change == "fewer":
        index.write_text("\n".join(["v1.2 6", *lines[1:-1]]))
    elif change == "more":
        index.write_text("\n".join(["v1.2 8", *lines[1:], lines[-1]]))
    elif change == "other version":
        index.write_text("\n".join(["v1.1 7", *lines[1:]]))
    elif change == "other shard":
        write_dali(write_samples(tmp_path / "b.tar", 7, first=10)).rename(index)
    elif change == "cut":
        index.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:20])
    else:
        index.write_text("")
    assert scan_shard(path) == scanned


def test_dalis_index_does_not_hide_what_is_refused(tmp_path: Path) -> None:
    image = b"j"
    for members in ([("a.jpg", image), ("a.pkl", b"p")], [("../a.jpg", image)], [("a.jpg", image), ("a.jpg", image)]):
        path = write_tar(tmp_path / "a.tar", members)
        lines, position = [], 0
        for name, contents in members:
            lines.append(f"{name.rpartition('.')[2]} {position + 512} {len(contents)} {name}")
            position += 1024
        path.with_suffix(".idx").write_text("\n".join(["v1.2 1", " ".join(lines)]))
        with pytest.raises(DataError):
            scan_shard(path)


@pytest.mark.parametrize("size", [10**17, 3 << 30])
def test_dalis_index_that_names_absurd_sizes_takes_no_memory(size: int, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("a.jpg", size=b"%011o\0" % (3 << 30)))
        file.truncate(2 * 512 + (3 << 30) + 1024)  # takes no room on the disk
    path.with_suffix(".idx").write_text(f"v1.2 1\njpg 512 {size} a.jpg\n")
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=r"sample a has 3,221,225,984 bytes, more than"):
            scan_shard(path)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


def test_dalis_index_of_long_names_or_folders_is_none() -> None:
    assert parse_dali("v1.2 1\njpg 1536 5 a.jpg\n") is None
    assert parse_dali("v1.2 2\njpg 512 5 a.jpg\njpg 2048 5 b.jpg\n") is None
    assert parse_dali("v1.2 2\njpg 512 5 a.jpg\njpg 1536 5 b.jpg\n") is not None
    assert parse_dali("v1.2 1\njpg 512 99999999999999999999 a.jpg\n") is None


@pytest.mark.parametrize("name", ["a.pyd", "a.pickle", "a.pkl", "a.x.PTH", "a.pt", "a.pkl.gz", "a.pt.xz"])
def test_a_shard_with_a_pickle_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar_bytes([("a.jpg", b"j"), (name, b"cos\nsystem\n(S'touch ran'\ntR.")]))
    with pytest.raises(DataError, match=rf"a\.tar: member '{name}' is a pickle"):
        scan_shard(path)
