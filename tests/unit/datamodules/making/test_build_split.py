"""Building a split: bytes that depend on source and settings alone, in one run or several, by any number of workers."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from configs.problems import DataError
from datamodules.indexing.building import build_index
from datamodules.making.build import build_split
from datamodules.making.listing import list_image_folder
from datamodules.making.shard import Settings
from datamodules.making.shards import write_classes
from datamodules.storage.locks import file_lock
from tests.conftest import picture
from tests.unit.datamodules.sources import hashes, image_folder, jpeg, samples_in, shards_command

SETTINGS = Settings(name="toy", split="train", seed=1, num_shards=4)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images", count=30)


def build(source: Path, out: Path, settings: Settings = SETTINGS, **options: bool | int) -> list[str]:
    """Names of the shards in the record."""
    return [shard.shard for shard in build_split(list_image_folder(source), out, settings, **options)]


def test_every_image_is_in_the_shards_once_with_its_label(source: Path, tmp_path: Path) -> None:
    names = build(source, tmp_path / "out")
    assert names == [f"toy-train-{i:05d}.tar" for i in range(4)]
    found = samples_in(tmp_path / "out")
    expected = {
        f"class{i % 3}_{i}": ("jpg", (source / f"class{i % 3}" / f"{i}.jpg").read_bytes(), i % 3) for i in range(30)
    }
    assert found == expected
    assert list(found) != sorted(found)
    index = build_index([tmp_path / "out" / name for name in names])
    assert sorted(index.shard_samples) == [7, 7, 8, 8]
    assert all(len(set(index.labels[a:b])) > 1 for a, b in zip(index.starts, index.starts[1:], strict=False))


def test_info_and_classes_are_as_timm_and_the_trainer_read_them(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == ["class0", "class1", "class2"]
    split = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]["train"]
    assert split["num_samples"] == sum(split["shard_lengths"]) == 30
    assert split["filenames"] == [f"toy-train-{i:05d}.tar" for i in range(4)]


def test_workers_place_and_times_change_no_byte_and_the_seed_does(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "a")
    os.utime(source / "class0" / "0.jpg", (1, 1))
    source.rename(tmp_path / "elsewhere")
    build(tmp_path / "elsewhere", tmp_path / "b", workers=3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert (tmp_path / "a" / "_info.json").read_bytes() == (tmp_path / "b" / "_info.json").read_bytes()
    build(tmp_path / "elsewhere", tmp_path / "c", replace(SETTINGS, seed=2))
    assert set(hashes(tmp_path / "c").values()).isdisjoint(hashes(tmp_path / "a").values())


def test_resized_shards_have_the_same_bytes_for_any_number_of_workers(source: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, short_side=16, quality=70)
    build(source, tmp_path / "a", settings)
    build(source, tmp_path / "b", settings, workers=2)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_a_finished_build_is_not_written_again(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    build(source, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == times


def test_a_shard_that_is_missing_or_cut_is_written_again_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = hashes(out)
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    (out / "toy-train-00001.tar").unlink()
    (out / "toy-train-00002.tar").write_bytes(b"cut")
    build(source, out)
    assert hashes(out) == before
    changed = [name for name, when in times.items() if (out / name).stat().st_mtime_ns != when]
    assert sorted(changed) == ["toy-train-00001.tar", "toy-train-00002.tar"]


def test_a_record_cut_in_its_last_line_costs_that_shard_alone(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = hashes(out)
    record = out / ".toy-train-build.jsonl"
    whole = record.read_text()
    record.write_text(whole[:-10])
    times = {path.name: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    build(source, out)
    changed = [name for name, when in times.items() if (out / name).stat().st_mtime_ns != when]
    assert changed == ["toy-train-00003.tar"]
    assert hashes(out) == before
    assert record.read_text() == whole


@pytest.mark.parametrize(
    "damage",
    [
        "[1]",
        "3",
        '{"a": 1}',
        '{"shard": "x", "size": 1, "samples": 1, "left_out": [3]}',
        "\ufffd",
        '{"shard": [], "size"',
    ],
)
def test_from_a_damaged_line_of_the_record_on_shards_are_written_again(
    damage: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(source, out)
    record = out / ".toy-train-build.jsonl"
    whole = record.read_text()
    lines = whole.splitlines()
    record.write_bytes("\n".join([*lines[:2], damage, *lines[2:]]).encode("utf-8").replace(b"\xef\xbf\xbd", b"\xff"))
    before = hashes(out)
    build(source, out)
    assert hashes(out) == before
    assert record.read_text() == whole


@pytest.mark.parametrize("header", ["[]", "{}", "3", "\xff", "not JSON", '{"shards": "many"}'])
def test_a_record_that_is_none_leaves_the_shards_alone(header: str, source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    before = hashes(tmp_path / "out")
    (tmp_path / "out" / ".toy-train-build.jsonl").write_bytes(header.encode("latin-1"))
    with pytest.raises(DataError, match="of another build"):
        build(source, tmp_path / "out")
    assert hashes(tmp_path / "out") == before


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"seed": 2}, "seed was 1, is 2"),
        ({"num_shards": 3}, "num_shards was 4, is 3"),
        ({"short_side": 8}, "short_side was None, is 8"),
    ],
)
def test_shards_of_another_build_are_not_touched_without_leave(
    changes: dict[str, int], what: str, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    build(source, out)
    before = hashes(out)
    other = replace(SETTINGS, **changes)
    with pytest.raises(DataError, match=rf"toy-train-00000\.tar of another build \({what}\): .*--overwrite"):
        build(source, out, other)
    assert hashes(out) == before
    build(source, out, other, overwrite=True)
    build(source, tmp_path / "fresh", other)
    assert hashes(out) == hashes(tmp_path / "fresh")
    assert (out / "_info.json").read_bytes() == (tmp_path / "fresh" / "_info.json").read_bytes()


def test_a_changed_image_makes_it_another_build(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    (source / "class0" / "0.jpg").write_bytes(jpeg(99))
    with pytest.raises(DataError, match="of another build \\(source was "):
        build(source, tmp_path / "out")


def test_shards_without_a_record_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "toy-train-00000.tar").write_bytes(b"somebody's")
    with pytest.raises(DataError, match="no record of it"):
        build(source, tmp_path / "out")
    assert (tmp_path / "out" / "toy-train-00000.tar").read_bytes() == b"somebody's"


def test_splits_share_a_folder_and_its_classes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(source, out)
    build(source, out, replace(SETTINGS, split="train-small", num_shards=1))
    build(source, out)  # does not take the other's shards for its own
    assert set(json.loads((out / "_info.json").read_text())["splits"]) == {"train", "train-small"}
    image_folder(tmp_path / "other", count=8, classes=4)
    with pytest.raises(DataError, match="has other classes than these 4"):
        build(tmp_path / "other", out, replace(SETTINGS, split="validation"))
    assert not list(out.glob("toy-validation-*"))


def test_the_only_split_may_be_overwritten_with_other_classes(source: Path, tmp_path: Path) -> None:
    build(source, tmp_path / "out")
    other = image_folder(tmp_path / "other", count=8, classes=4)
    build(other, tmp_path / "out", overwrite=True)
    assert len(json.loads((tmp_path / "out" / "classes.json").read_text())) == 4


def test_the_shards_have_about_the_size_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    settings = replace(SETTINGS, num_shards=None, shard_size_bytes=40_000)
    names = build(source, tmp_path / "a", settings)
    sizes = [(tmp_path / "a" / name).stat().st_size for name in names]
    assert 30_000 < sum(sizes) / len(sizes) < 50_000
    for i in range(30):
        (source / f"class{i % 3}" / f"{i}.jpg").write_bytes(jpeg(i, size=(400, 300)))
    for _ in range(2):
        small = build(source, tmp_path / "b", replace(settings, short_side=50))
        assert len(small) == 3
        sizes = [(tmp_path / "b" / name).stat().st_size for name in small]
        assert 30_000 < sum(sizes) / len(sizes) < 60_000


def test_a_bad_image_ends_the_build_with_its_name_and_reason(source: Path, tmp_path: Path) -> None:
    (source / "class1" / "4.jpg").write_bytes(b"<html>not found</html>")
    for workers in (1, 2):
        with pytest.raises(
            DataError, match=r"image class1_4 \(.*class1/4\.jpg\): not JPEG, PNG, .*begins with b'<html>"
        ):
            build(source, tmp_path / str(workers), workers=workers)
        assert not list((tmp_path / str(workers)).glob("*.tmp"))
        assert not (tmp_path / str(workers) / "_info.json").exists()


def test_bad_images_are_left_out_and_listed_where_that_is_asked_for(source: Path, tmp_path: Path) -> None:
    (source / "class1" / "4.jpg").write_bytes(b"")
    (source / "class2" / "5.jpg").write_bytes(jpeg(5, size=(64, 64))[:-200])
    options = ("--name", "toy", "--num-shards", 2, "--resize", 16, "--skip-bad", "--workers", 2)
    for _ in range(2):  # what is kept from an earlier run is reported too
        output = shards_command("build", source, tmp_path / "out", *options)
        assert re.search(r"left out of toy-train-0000\d\.tar: class1_4: not JPEG, .*: empty", output)
        assert re.search(r"left out of toy-train-0000\d\.tar: class2_5: a damaged image: .*truncated", output)
        assert "28 images of 3 classes in 2 shards" in output
        assert output.rstrip().endswith("2 left out")
    info = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]["train"]
    assert info["num_samples"] == sum(info["shard_lengths"]) == 28 == len(samples_in(tmp_path / "out"))


def test_a_shard_of_bad_images_alone_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "images" / "a").mkdir(parents=True)
    (tmp_path / "images" / "a" / "x.jpg").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of its images can be read, the first being .*empty"):
        build(tmp_path / "images", tmp_path / "out", replace(SETTINGS, num_shards=1, skip_bad=True))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_two_builds_of_one_split_at_once_are_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with (
        file_lock(tmp_path / "out" / ".toy-train-build.lock"),
        pytest.raises(DataError, match="toy-train is being built by another process"),
    ):
        build(source, tmp_path / "out")


def test_extensions_follow_the_bytes(tmp_path: Path) -> None:
    folder = tmp_path / "images" / "a"
    folder.mkdir(parents=True)
    formats = {"png": "PNG", "webp": "WEBP", "jpg": "JPEG", "gif": "GIF", "bmp": "BMP"}
    for name, file_format in formats.items():
        (folder / f"is_{name}.JPEG").write_bytes(picture(1, file_format=file_format))
    build(tmp_path / "images", tmp_path / "out", replace(SETTINGS, num_shards=1))
    found = {key: (extension, contents) for key, (extension, contents, _) in samples_in(tmp_path / "out").items()}
    assert {key: extension for key, (extension, _) in found.items()} == {
        "a_is_png": "png",
        "a_is_webp": "webp",
        "a_is_jpg": "jpg",
        "a_is_gif": "png",
        "a_is_bmp": "png",
    }
    for name in ("png", "webp", "jpg"):
        assert found[f"a_is_{name}"][1] == (folder / f"is_{name}.JPEG").read_bytes()


# kill -9

SLOW_BUILD = ("--name", "toy", "--num-shards", "12", "--resize", "400")


@pytest.fixture(scope="module")
def slow_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images that take a second or so to make smaller."""
    source = tmp_path_factory.mktemp("slow") / "images"
    contents = [jpeg(i, size=(1000, 750)) for i in range(8)]
    for i in range(96):
        path = source / f"class{i % 2}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(contents[i % 8])
    return source


@pytest.fixture(scope="module")
def whole(slow_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    shards_command("build", slow_source, out, *SLOW_BUILD, "--workers", 2)
    return out


def start(source: Path, out: Path, workers: int) -> "subprocess.Popen[str]":
    """A build, once it has finished three shards."""
    command = [sys.executable, "-m", "datamodules", "build", str(source), str(out), *SLOW_BUILD]
    command += ["--workers", str(workers)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(out.glob("*.tar"))) < 3:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.002)
    return process


@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_build_goes_on_and_ends_with_the_same_bytes(
    workers: int, slow_source: Path, whole: Path, tmp_path: Path
) -> None:
    process = start(slow_source, tmp_path, workers)
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    process.communicate()
    finished = hashes(tmp_path)
    assert 3 <= len(finished) < 12
    assert not (tmp_path / "_info.json").exists()
    assert len(children) >= (workers if workers > 1 else 0)
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive

    recorded = (tmp_path / ".toy-train-build.jsonl").read_text().count('"shard": ')
    times = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.tar")}
    shards_command("build", slow_source, tmp_path, *SLOW_BUILD)
    assert hashes(tmp_path) == hashes(whole)
    kept = [name for name, when in times.items() if (tmp_path / name).stat().st_mtime_ns == when]
    assert len(kept) >= recorded > 0
    assert (tmp_path / "_info.json").read_bytes() == (whole / "_info.json").read_bytes()
    assert sorted(os.listdir(tmp_path)) == sorted(os.listdir(whole))


def test_a_dead_worker_is_one_message_and_the_build_goes_on_later(
    slow_source: Path, whole: Path, tmp_path: Path
) -> None:
    process = start(slow_source, tmp_path, 2)
    workers = [each for each in psutil.Process(process.pid).children() if "spawn_main" in " ".join(each.cmdline())]
    workers[0].kill()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 93
    assert errors.startswith("error: a worker process died")
    assert len(errors.splitlines()) == 1
    assert not list(tmp_path.glob(".*.tmp"))
    shards_command("build", slow_source, tmp_path, *SLOW_BUILD)
    assert hashes(tmp_path) == hashes(whole)


def test_ctrl_c_ends_all_processes_and_prints_no_traceback(slow_source: Path, tmp_path: Path) -> None:
    process = start(slow_source, tmp_path, 2)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not list(tmp_path.glob(".*.tmp"))


def test_classes_of_shards_that_are_gone_do_not_stand_in_the_way(tmp_path: Path) -> None:
    write_classes(tmp_path, ["a"])
    (tmp_path / "_info.json").write_text('{"splits": {}}')
    write_classes(tmp_path, ["a", "b"])


def test_keys_stay_unique_in_a_large_folder_with_alike_names(tmp_path: Path) -> None:
    root = tmp_path / "images"
    for name in ("a/b_c.jpg", "a_b/c.jpg", "a/b.c.jpg", "a/b_c.png", "a/b_c_1.png"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(jpeg(1))
    listing = list_image_folder(root)
    keys = [listing.keys[i] for i in range(len(listing))]
    assert max(Counter(keys).values()) == 1
    assert not any("." in key for key in keys)
