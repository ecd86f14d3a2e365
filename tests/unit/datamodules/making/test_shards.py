"""Writing shards: the same bytes each time, each image once, whole files or none."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import webdataset as wds
from timm.data.readers.reader_wds import ReaderWds, _load_info, _parse_split_info

from configs.problems import DataError
from datamodules import digits
from datamodules.indexing.building import build_index
from datamodules.making.shards import Image, is_built, write_classes, write_split
from tests.conftest import pictures


def hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("*.tar"))}


def images_of(paths: list[Path]) -> list[tuple[str, bytes, bytes]]:
    """Key, image and label of each sample, as webdataset reads them."""
    found = wds.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    return [(s["__key__"], next(s[e] for e in ("png", "jpg", "jpeg") if e in s), s["cls"]) for s in found]


# write_split


def test_the_same_images_and_arguments_give_the_same_bytes(tmp_path: Path) -> None:
    for place in ("a", "b"):
        write_split(pictures(50), tmp_path / place, name="toy", split="train", num_shards=4, seed=3)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    assert (tmp_path / "a" / "_info.json").read_bytes() == (tmp_path / "b" / "_info.json").read_bytes()
    write_split(pictures(50), tmp_path / "c", name="toy", split="train", num_shards=4, seed=4)
    assert hashes(tmp_path / "c") != hashes(tmp_path / "a")


def test_no_time_user_or_locale_goes_into_a_shard(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from datamodules.making.shards import Image, write_split;"
        "write_split([Image('gr\\u00f6\\u00dfe', 'png', 1, lambda: b'x')], Path(sys.argv[1]),"
        " name='toy', split='train', num_shards=1, seed=0)"
    )
    for place, language in (("a", "C"), ("b", "C.UTF-8")):
        environment = {**os.environ, "LC_ALL": language, "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
        subprocess.run([sys.executable, "-c", script, str(tmp_path / place)], check=True, env=environment)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")
    with tarfile.open(tmp_path / "a" / "toy-train-00000.tar", encoding="utf-8") as archive:
        for member in archive:
            assert member.name in ("größe.png", "größe.cls")
            assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_every_image_is_written_once_and_shuffled_over_all_shards(tmp_path: Path) -> None:
    images = pictures(53)
    paths = write_split(images, tmp_path, name="toy", split="train", num_shards=5, seed=0)
    assert [path.name for path in paths] == [f"toy-train-{i:05d}.tar" for i in range(5)]
    found = images_of(paths)
    assert sorted(found) == sorted((image.key, image.read(), str(image.label).encode()) for image in images)
    assert [key for key, _, _ in found] != sorted(key for key, _, _ in found)
    index = build_index(paths)
    assert index.shard_samples.max() - index.shard_samples.min() <= 1
    assert all(len(set(index.labels[a:b])) > 1 for a, b in zip(index.starts, index.starts[1:], strict=False))


def test_short_names_need_no_extended_headers_and_long_ones_have_them(tmp_path: Path) -> None:
    long = "n" * 140
    images = [Image("short", "jpg", 0, lambda: b"1"), Image(long, "jpg", 1, lambda: b"2")]
    [path] = write_split(images, tmp_path, name="toy", split="train", num_shards=1, seed=0)
    assert {key for key, _, _ in images_of([path])} == {"short", long}
    assert sorted(build_index([path]).labels.tolist()) == [0, 1]
    [plain] = write_split(images[:1], tmp_path, name="plain", split="train", num_shards=1, seed=0)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for name, contents in (("short.jpg", b"1"), ("short.cls", b"0")):
            member = tarfile.TarInfo(name)
            member.size = 1
            archive.addfile(member, io.BytesIO(contents))
    assert plain.read_bytes() == buffer.getvalue()


def test_timm_reads_the_info_file_and_every_image(tmp_path: Path) -> None:
    write_split(pictures(37), tmp_path, name="toy", split="train", num_shards=4, seed=0)
    write_split(pictures(11, first=100), tmp_path, name="toy", split="validation", num_shards=2, seed=0)
    info = _load_info(str(tmp_path))
    train, validation = _parse_split_info("train", info), _parse_split_info("validation", info)
    assert (train.num_samples, train.shard_lengths) == (37, (9, 9, 9, 10))
    assert train.filenames == tuple(f"toy-train-{i:05d}.tar" for i in range(4))
    assert (validation.num_samples, validation.name) == (11, "validation")
    found = list(ReaderWds(str(tmp_path), split="validation", is_training=False))
    assert Counter(target for _, target in found) == Counter(i % 4 for i in range(100, 111))


def test_a_split_can_be_written_again_and_others_stay(tmp_path: Path) -> None:
    write_split(pictures(10), tmp_path, name="toy", split="validation", num_shards=2, seed=0)
    for count in (20, 30):
        write_split(pictures(count), tmp_path, name="toy", split="train", num_shards=4, seed=0)
    splits = json.loads((tmp_path / "_info.json").read_text())["splits"]
    assert {name: split["num_samples"] for name, split in splits.items()} == {"validation": 10, "train": 30}


def test_shards_of_another_build_that_would_stay_are_refused(tmp_path: Path) -> None:
    """`toy-train-*.tar` would name them too, and their images would come twice."""
    write_split(pictures(20), tmp_path, name="toy", split="train", num_shards=4, seed=0)
    before = hashes(tmp_path)
    with pytest.raises(DataError, match=r"toy-train-00002\.tar of another build, beside the 2 shards asked for"):
        write_split(pictures(20), tmp_path, name="toy", split="train", num_shards=2, seed=0)
    assert hashes(tmp_path) == before


@pytest.mark.parametrize(("count", "num_shards"), [(3, 4), (0, 1), (3, 0)])
def test_fewer_images_than_shards_are_a_data_error(count: int, num_shards: int, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"train: {count} images cannot fill {num_shards} shards"):
        write_split(pictures(count), tmp_path / "out", name="toy", split="train", num_shards=num_shards, seed=0)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("keys", [["a", "b", "a"], ["a.b"], ["n01/a.b"]])
def test_keys_that_would_not_come_back_are_refused(keys: list[str], tmp_path: Path) -> None:
    images = [Image(key, "png", 0, lambda: b"x") for key in keys]
    with pytest.raises(DataError, match=r"have the key '.*': a key is unique, and has no dot in it"):
        write_split(images, tmp_path, name="toy", split="train", num_shards=1, seed=0)
    assert not list(tmp_path.iterdir())


@dataclass
class Failing:
    error: Exception

    def __call__(self) -> bytes:
        raise self.error


@pytest.mark.parametrize("error", [FileNotFoundError(2, "No such file or directory"), ValueError("other")])
def test_a_build_that_fails_leaves_whole_shards_and_nothing_half_written(error: Exception, tmp_path: Path) -> None:
    images = [*pictures(9), Image("broken", "png", 0, Failing(error))]
    expected = DataError if isinstance(error, OSError) else ValueError
    with pytest.raises(expected, match=r"image broken: .*No such file|other"):
        write_split(images, tmp_path, name="toy", split="train", num_shards=5, seed=0)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert all(name.endswith(".tar") for name in left)
    assert len(left) < 5
    assert all(build_index([tmp_path / name]).shard_samples.tolist() == [2] for name in left)


def test_progress_counts_shards_and_no_temporary_file_stays(tmp_path: Path) -> None:
    progress: list[int] = []
    write_split(pictures(9), tmp_path, name="toy", split="train", num_shards=3, seed=0, progress=progress.append)
    assert progress == [1, 1, 1]
    assert sorted(os.listdir(tmp_path)) == ["_info.json", *(f"toy-train-{i:05d}.tar" for i in range(3))]


# write_classes


def test_classes_are_listed_in_the_order_of_the_labels(tmp_path: Path) -> None:
    write_classes(tmp_path / "out", ["katze", "größe", "dog"])
    text = (tmp_path / "out" / "classes.json").read_text(encoding="utf-8")
    assert json.loads(text) == ["katze", "größe", "dog"]
    assert "größe" in text


def test_a_split_of_other_classes_is_refused_for_its_labels_mean_something_else(tmp_path: Path) -> None:
    write_classes(tmp_path, ["a", "b", "c"])
    write_classes(tmp_path, ["a", "c"])  # no shards yet
    write_split(pictures(3), tmp_path, name="toy", split="train", num_shards=1, seed=0)
    write_classes(tmp_path, ["a", "c"])
    with pytest.raises(DataError, match="has other classes than these 3"):
        write_classes(tmp_path, ["a", "b", "c"])
    assert json.loads((tmp_path / "classes.json").read_text()) == ["a", "c"]


def test_a_class_whose_name_is_no_unicode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"class 'caf\\udce9' has a name that is not UTF-8: rename it"):
        write_classes(tmp_path, ["a", os.fsdecode(b"caf\xe9")])
    assert not (tmp_path / "classes.json").exists()


@pytest.mark.parametrize("text", [b"{", b"[]", b"3", b'{"splits": []}', b"\xff", b"[" * 100_000])
def test_a_folder_with_a_damaged_info_file_is_refused_and_it_stays(text: bytes, tmp_path: Path) -> None:
    (tmp_path / "_info.json").write_bytes(text)
    with pytest.raises(DataError, match=r"_info\.json: not .*: remove it"):
        write_split(pictures(3), tmp_path, name="toy", split="train", num_shards=1, seed=0)
    with pytest.raises(DataError, match=r"_info\.json: not .*: remove it"):
        write_classes(tmp_path, ["a"])
    with pytest.raises(DataError, match=r"_info\.json: not .*: remove it"):
        is_built(tmp_path)
    assert (tmp_path / "_info.json").read_bytes() == text


# digits


def test_the_digits_are_all_there_once_in_both_splits_and_built_alike(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    assert not is_built(a)
    progress: list[int] = []
    digits.build(a, progress.append)
    digits.build(b)
    assert sum(progress) == 20
    assert is_built(a)
    assert hashes(a) == hashes(b)
    train = build_index(sorted(a.glob("digits-train-*.tar")))
    validation = build_index(sorted(a.glob("digits-validation-*.tar")))
    assert (len(train), len(validation)) == (1438, 359)
    shares = [(validation.labels == label).sum() / (train.labels == label).sum() for label in range(10)]
    assert all(abs(share - 0.25) < 0.01 for share in shares)
    keys = [key for key, _, _ in images_of(sorted(a.glob("*.tar")))]
    assert len(set(keys)) == len(keys) == 1797


def test_digits_are_not_built_while_a_shard_or_a_split_is_missing(tmp_path: Path) -> None:
    write = partial(write_split, out_dir=tmp_path, name="digits", num_shards=2, seed=0)
    write(pictures(4), split="validation")
    assert not is_built(tmp_path)
    write(pictures(4), split="train")
    assert is_built(tmp_path)
    (tmp_path / "digits-validation-00001.tar").unlink()
    assert not is_built(tmp_path)
