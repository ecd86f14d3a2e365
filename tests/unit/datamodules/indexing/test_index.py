"""The index of a split: other people's shards in, numbers out; kept in a file that is checked and never trusted."""

import io
import json
import multiprocessing
import os
import pickle
import random
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset as wds

from configs.problems import DataError
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.index_files import index_file, load_index, save_index
from datamodules.indexing.opening import open_index
from datamodules.indexing.scan import scan_shard, split_name
from tests.conftest import picture
from tests.unit.datamodules.archives import gnu_tar, header, run_gnu_tar, write_samples, write_tar

COLUMNS = ("shard_bytes", "shard_mtime_ns", "shard_samples", "offsets", "sizes", "labels")
NOBODY = 65534


def assert_equal(one: ShardIndex, other: ShardIndex) -> None:
    assert one.shards == other.shards
    for name in COLUMNS:
        assert getattr(one, name).dtype == getattr(other, name).dtype == np.int64
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three shards of 2, 3 and 4 samples."""
    return [write_samples(tmp_path / "shards" / f"{i}.tar", i + 2, first=10 * i) for i in range(3)]


# Scanning


def test_samples_are_numbered_shard_after_shard_in_the_order_given(three: list[Path]) -> None:
    index = build_index(three)
    assert index.shard_samples.tolist() == [2, 3, 4]
    assert index.starts.tolist() == [0, 2, 5, 9]
    assert [index.shard_of(sample) for sample in range(len(index))] == [0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert index.labels.tolist() == [0, 1, 2, 3, 0, 0, 1, 2, 3]
    assert build_index(three[::-1]).shard_samples.tolist() == [4, 3, 2]


def test_a_sample_spans_its_headers_and_padding(three: list[Path]) -> None:
    index = build_index(three[:1])
    with tarfile.open(three[0]) as archive:
        members = archive.getmembers()
    assert index.offsets.tolist() == [members[0].offset, members[2].offset]
    assert (index.offsets + index.sizes)[0] == members[2].offset
    assert index.sizes[1] == -(-(members[3].offset_data + members[3].size) // 512) * 512 - members[2].offset


def test_what_webdatasets_shard_writer_leaves_is_read(tmp_path: Path) -> None:
    pattern = str(tmp_path / "train-%06d.tar")
    with wds.ShardWriter(pattern, maxcount=4, verbose=0) as writer:
        for i in range(10):
            writer.write({"__key__": f"n0{i % 3}/{i:04d}", "jpg": picture(i, file_format="JPEG"), "cls": i % 7})
    index = build_index(sorted(tmp_path.glob("*.tar")))
    assert index.shard_samples.tolist() == [4, 4, 2]
    assert index.labels.tolist() == [i % 7 for i in range(10)]


@pytest.mark.skipif(gnu_tar is None, reason="GNU tar is not installed")
def test_gnu_tar_of_imagenet_folders_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    for wnid, label in (("n01440764", 0), ("n02105855", 227)):
        for i in range(3):
            stem = folder / wnid / f"{wnid}_{i}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            stem.with_suffix(".JPEG").write_bytes(picture(i))
            stem.with_suffix(".cls").write_text(f"{label}\n")
    archive = run_gnu_tar(folder, tmp_path / "a.tar", "--sort=name", ".")
    assert sorted(scan_shard(archive).labels) == [0, 0, 0, 227, 227, 227]


@pytest.mark.parametrize(
    ("members", "label"),
    [
        ({"img.jpg": b"j", "img.cls": b"3"}, 3),
        ({"img.JPEG": b"j", "img.cls": b"3\n"}, 3),
        ({"img.CLS": b" 3 ", "img.PNG": b"j"}, 3),
        ({"img.webp": b"j", "img.json": b'{"label": 4, "width": 10}'}, 4),
        ({"img.jpg": b"j", "img.json": b'{"cls": 5}'}, 5),
        ({"img.jpg": b"j", "img.json": b'{"class": 6}'}, 6),
        ({"img.jpg": b"j", "img.json": b'{"target": 7}'}, 7),
        ({"img.jpg": b"j", "img.json": b'{"label": 4}', "img.cls": b"3"}, 3),
        ({"img.jpg": b"j", "img.json": b'{"caption": "a dog"}'}, -1),
        ({"img.jpg": b"j", "img.json": b'{"label": "dog"}'}, -1),
        ({"img.jpg": b"j", "img.json": b'{"label": true}'}, -1),
        ({"img.jpg": b"j", "img.json": b"[1]"}, -1),
        ({"img.jpg": b"j", "img.txt": b"a caption", "img.__meta__": b"{}", "img.cls": b"3"}, 3),
        ({"img.jpg": b"j", "img.png": b"p", "img.cls": b"3"}, 3),
        ({"img.jpg": b"j"}, -1),
        ({"img.jpg": b"j", "img.cls": b"-1"}, -1),
        ({"img.jpg": b"j", "img.cls": b"2147483647"}, 2**31 - 1),
    ],
)
def test_labels_are_read_as_others_write_them(members: dict[str, bytes], label: int, tmp_path: Path) -> None:
    scan = scan_shard(write_tar(tmp_path / "a.tar", list(members.items())))
    assert scan.labels == [label]
    assert len(scan.offsets) == 1


@pytest.mark.parametrize(
    "member",
    [
        ("img.cls", b"n01440764"),
        ("img.cls", b"3.0"),
        ("img.cls", b""),
        ("img.cls", b"\xff\xfe"),
        ("img.cls", b"4294967299"),  # 3, if it were cut to 32 bits
        ("img.cls", b"9" * 30),
        ("img.json", b'{"label": 4294967299}'),
        ("img.json", b'{"label": 3'),
        ("img.json", b"[" * 100_000),
    ],
)
def test_a_label_that_is_none_is_a_data_error_with_shard_and_key(member: tuple[str, bytes], tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("img.jpg", b"j"), member])
    with pytest.raises(DataError, match=r"a\.tar: sample img: \.(cls|json) is not a label") as caught:
        scan_shard(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("name", "key", "extension"),
    [
        ("img.jpg", "img", "jpg"),
        ("./train/n01/img.JPEG", "./train/n01/img", "jpeg"),
        ("a.b/img.seg.png", "a.b/img", "seg.png"),
        ("v1.0/img", "v1.0/img", ""),
        (".hidden.jpg", "", "hidden.jpg"),
        ("a//img.jpg", "a//img", "jpg"),
    ],
)
def test_names_are_split_as_webdataset_splits_them(name: str, key: str, extension: str) -> None:
    assert split_name(name) == (key, extension)
    base, rest = wds.tariterators.base_plus_ext(name)
    if key and extension:
        assert (base, rest.lower()) == (key, extension)
    else:
        assert base is None


def test_what_webdataset_leaves_out_is_left_out_and_nothing_else(tmp_path: Path) -> None:
    image = b"j"
    path = write_tar(
        tmp_path / "a.tar",
        [
            ("__meta__", b"{}"),
            ("__index__/shards.json", b"{}"),
            ("__meta__.json", b"{}"),
            ("LICENSE", b"text"),
            ("n01/._img.jpg", b"what macOS adds"),
            ("n01/__img.jpg", image),
            ("__n01/img.jpg", image),
            ("n01__/img__.jpg", image),
            ("__img__.jpg", image),
            ("train/__x__/img.jpg", image),
        ],
    )
    assert len(scan_shard(path).offsets) == 5


def test_a_key_repeated_later_is_another_sample(tmp_path: Path) -> None:
    members = [("a.jpg", b"1"), ("a.cls", b"1"), ("b.jpg", b"2"), ("a.jpg", b"3"), ("a.cls", b"2")]
    assert scan_shard(write_tar(tmp_path / "a.tar", members)).labels == [1, -1, 2]


@pytest.mark.parametrize(
    ("members", "what"),
    [
        ([], "no sample in it"),
        ([("LICENSE", b"text"), ("__meta__/x.json", b"{}")], "no sample in it"),
        ([("a.jpg", b"1"), ("a.JPG", b"2")], r"sample a has \['jpg', 'jpg'\] twice over"),
        ([("a.jpg", b"1"), ("b.cls", b"2")], r"sample b has \['cls'\], none of jpg, jpeg, png, webp"),
        ([("a.seg.png", b"1")], r"sample a has \['seg.png'\], none of"),
        ([("README.txt", b"text"), ("a.jpg", b"1")], r"sample README has \['txt'\], none of"),
        ([("../a.jpg", b"1")], r"'\.\./a\.jpg' points out of the archive"),
        ([("train/../../a.jpg", b"1")], "points out of the archive"),
    ],
)
def test_a_shard_at_fault_is_a_data_error(members: list[tuple[str, bytes]], what: str, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(DataError, match=rf"a\.tar: .*{what}"):
        scan_shard(path)


def test_two_dots_in_a_name_are_no_way_out(tmp_path: Path) -> None:
    assert len(scan_shard(write_tar(tmp_path / "a.tar", [("a..b/x.jpg", b"1"), ("..c/y.jpg", b"1")])).labels) == 2


def test_a_truncated_shard_is_a_data_error_and_never_a_shorter_one(tmp_path: Path) -> None:
    whole = write_samples(tmp_path / "whole.tar", 3).read_bytes()
    end = whole.rstrip(b"\0")
    for length in (0, 100, 512, 700, 1024, 2048, 3072, len(end), -(-len(end) // 512) * 512):
        path = tmp_path / "cut.tar"
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"cut\.tar: truncated (tar|or damaged tar)"):
            scan_shard(path)


def test_a_sample_that_would_fill_the_memory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    with path.open("wb") as file:
        file.write(header("a.jpg", size=b"%011o\0" % (1 << 30)))
        file.truncate(512 + (1 << 30) + 1024)  # takes no room on the disk
    with pytest.raises(DataError, match=r"a\.tar: sample a has 1,073,742,336 bytes, more than 1,073,741,824: refused"):
        scan_shard(path)


def test_a_missing_shard_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.tar: No such file or directory"):
        build_index([tmp_path / "gone.tar"])
    with pytest.raises(DataError, match="Is a directory"):
        build_index([tmp_path])


# The file


def test_a_saved_index_comes_back_as_it_was(three: list[Path], tmp_path: Path) -> None:
    index = build_index(three)
    save_index(index, tmp_path / "x" / "index.npz")
    loaded = load_index(three, tmp_path / "x" / "index.npz")
    assert loaded is not None
    assert_equal(index, loaded)
    assert loaded.digest == index.digest
    assert os.listdir(tmp_path / "x") == ["index.npz"]


def test_samples_beyond_two_gigabytes_keep_their_sizes(three: list[Path], tmp_path: Path) -> None:
    index = build_index(three)
    index.sizes[3], index.offsets[4] = 2**31 + 5, 2**40
    save_index(index, tmp_path / "index.npz")
    loaded = load_index(three, tmp_path / "index.npz")
    assert loaded is not None
    assert_equal(index, loaded)


def recorded(progress: list[int]) -> Callable[[int], None]:
    return progress.append


def test_an_index_up_to_date_is_read_and_no_shard_scanned(three: list[Path]) -> None:
    progress: list[int] = []
    made = open_index(three, progress=recorded(progress))
    assert progress == [1, 1, 1]
    for path in three:  # contents that no scan would accept, behind the same size and time
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert_equal(open_index(three, progress=recorded(progress)), made)
    assert progress == [1, 1, 1]


@pytest.mark.parametrize("what", ["size", "time"])
def test_a_shard_that_changed_is_scanned_again_and_the_others_are_not(what: str, three: list[Path]) -> None:
    old = open_index(three)
    for path in (three[0], three[2]):
        stat = path.stat()
        path.write_bytes(b"x" * stat.st_size)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    stat = three[1].stat()
    write_samples(three[1], 30 if what == "size" else 3, first=1)
    os.utime(three[1], ns=(stat.st_atime_ns, stat.st_mtime_ns + (what == "time")))
    new = open_index(three)
    assert new.shard_samples.tolist() == [2, 30 if what == "size" else 3, 4]
    assert new.labels[2:5].tolist() == [1, 2, 3]
    np.testing.assert_array_equal(new.offsets[:2], old.offsets[:2])
    assert new.digest != old.digest
    loaded = load_index(three, index_file(three, None))
    assert loaded is not None
    assert_equal(loaded, new)


def test_shards_of_one_name_in_two_folders_are_not_taken_for_each_other(tmp_path: Path) -> None:
    """Also where size and time are the same, as after `touch -r` or unpacking."""
    paths = [write_samples(tmp_path / place / "000.tar", 3, first=i) for i, place in enumerate(("train", "val"))]
    for path in paths:
        os.utime(path, ns=(0, 0))
    assert paths[0].stat().st_size == paths[1].stat().st_size
    both = build_index(paths)
    assert both.labels.tolist() == [0, 1, 2, 1, 2, 3]
    assert_equal(build_index(paths, reuse=both), both)
    index_dir = str(tmp_path / "indexes")
    for _ in range(2):
        for path, labels in zip(paths, ([0, 1, 2], [1, 2, 3]), strict=True):
            assert open_index([path], index_dir=index_dir).labels.tolist() == labels
    assert len(os.listdir(index_dir)) == 2
    other = write_samples(tmp_path / "other" / "000.tar", 3, first=2)
    os.utime(other, ns=(0, 0))
    open_index(paths)
    assert open_index([paths[0], other]).labels.tolist() == [0, 1, 2, 2, 3, 0]


def test_the_digest_is_free_of_folder_and_time_and_the_index_moves_with_its_folder(
    three: list[Path], tmp_path: Path
) -> None:
    index = open_index(three)
    moved = tmp_path / "elsewhere"
    shutil.move(three[0].parent, moved)
    progress: list[int] = []
    paths = [moved / path.name for path in three]
    assert open_index(paths, progress=recorded(progress)).digest == index.digest
    assert progress == []
    os.utime(paths[1], ns=(0, 0))
    assert open_index(paths).digest == index.digest


@pytest.mark.parametrize("change", ["label", "name", "order", "sample"])
def test_the_digest_changes_with_names_order_layout_and_labels(change: str, three: list[Path]) -> None:
    old, paths = build_index(three).digest, three
    if change == "label":
        write_samples(three[0], 2, first=1)
    elif change == "name":
        paths = [three[0].rename(three[0].with_name("9.tar")), *three[1:]]
    elif change == "order":
        paths = three[::-1]
    else:
        write_samples(three[0], 3)
    assert build_index(paths).digest != old


def test_a_damaged_index_file_is_never_taken_for_another(three: list[Path], tmp_path: Path) -> None:
    index = build_index(three)
    file = tmp_path / "index.npz"
    save_index(index, file)
    whole = file.read_bytes()
    rng = random.Random(0)
    damaged = [whole[:length] for length in range(0, len(whole), 61)]
    for _ in range(400):
        changed = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        damaged.append(bytes(changed))
    refused = 0
    for contents in [*damaged, b"", b"PK", b"x" * 100]:
        file.write_bytes(contents)
        loaded = load_index(three, file)
        if loaded is None:
            refused += 1
        else:
            assert_equal(loaded, index)
    assert refused > 200


@pytest.mark.parametrize("change", ["fewer labels", "flat", "negative", "version", "missing", "npy", "folder"])
def test_an_index_whose_parts_do_not_fit_is_none(change: str, three: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "index.npz"
    save_index(build_index(three), file)
    arrays = dict(np.load(file))
    if change == "fewer labels":
        arrays["labels"] = arrays["labels"][:-1]
    elif change == "flat":
        arrays["shard_samples"] = np.int64(9)
    elif change == "negative":
        arrays["shard_samples"] = arrays["shard_samples"][:2]
    elif change == "version":
        arrays["version"] = np.int64(99)
    elif change == "missing":
        del arrays["offsets"]
    np.savez(file, **arrays)
    if change == "npy":
        with file.open("wb") as stream:
            np.save(stream, arrays["labels"])
    elif change == "folder":
        file.unlink()
        file.mkdir()
    assert load_index(three, file) is None


def test_a_damaged_index_is_made_again(three: list[Path]) -> None:
    index = open_index(three)
    file = index_file(three, None)
    file.write_bytes(file.read_bytes()[:200])
    assert_equal(open_index(three), index)
    loaded = load_index(three, file)
    assert loaded is not None
    assert_equal(loaded, index)


class _Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("where", ["labels", "file"])
def test_an_index_is_never_unpickled(where: str, three: list[Path], tmp_path: Path) -> None:
    index = open_index(three)
    file, trap = index_file(three, None), tmp_path / "sprung"
    arrays = dict(np.load(file))
    arrays["labels"] = np.array([_Trap(trap)] * len(index), dtype=object)
    if where == "labels":
        np.savez(file, **arrays)
        np.load(file, allow_pickle=True)["labels"]
        assert trap.exists(), "the trap does not work"
        trap.unlink()
    else:
        file.write_bytes(pickle.dumps(_Trap(trap)))
    assert_equal(open_index(three), index)
    assert not trap.exists()


def test_an_index_of_other_shards_is_not_taken(three: list[Path], tmp_path: Path) -> None:
    file = tmp_path / "index.npz"
    save_index(build_index(three), file)
    assert load_index(three[:2], file) is None
    assert load_index(three[::-1], file) is None
    assert index_file(three, None) != index_file(three[:2], None)


def test_names_that_are_no_unicode_are_kept(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"shard-\xff.tar")
    write_samples(path, 2)
    assert_equal(open_index([path]), open_index([path]))
    assert len(open_index([path]).digest) == 64


# Where the file is kept


def test_index_dir_takes_the_index_instead_of_the_shards_folder(three: list[Path], tmp_path: Path) -> None:
    index_dir = tmp_path / "deep" / "indexes"
    index = open_index(three, index_dir=str(index_dir))
    assert len(os.listdir(index_dir)) == 1
    assert sorted(os.listdir(three[0].parent)) == [path.name for path in three]
    progress: list[int] = []
    assert_equal(open_index(three, index_dir=str(index_dir), progress=recorded(progress)), index)
    assert progress == []


def test_an_index_that_cannot_be_written_says_which_setting_helps(three: list[Path], tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(DataError, match=r"the index cannot be written to .*taken.*: set data\.index_dir"):
        open_index(three, index_dir=str(tmp_path / "taken"))


@pytest.fixture
def read_only() -> Iterator[tuple[list[Path], Path]]:
    """Three shards in a folder that a plain user may read only, and that user's home."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        shards = [write_samples(root / "shards" / f"{i}.tar", 2, first=i) for i in range(3)]
        home = root / "home"
        home.mkdir(mode=0o777)
        home.chmod(0o777)
        shards[0].parent.chmod(0o555)
        yield shards, home
        shards[0].parent.chmod(0o755)


def as_plain_user(home: Path, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function in a process that may not write where others may not: root may write everywhere."""
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(1, mp_context=context, initializer=_become_plain, initargs=(str(home),)) as pool:
        return pool.submit(function, *arguments).result()


def _become_plain(home: str) -> None:
    os.environ["HOME"] = home
    if os.getuid() == 0:
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)


def _open_and_count(shards: list[Path]) -> tuple[str, int]:
    progress: list[int] = []
    return open_index(shards, progress=progress.append).digest, len(progress)


def test_shards_in_a_read_only_folder_have_their_index_in_the_users_cache(read_only: tuple[list[Path], Path]) -> None:
    shards, home = read_only
    digest, scanned = as_plain_user(home, _open_and_count, shards)
    assert scanned == 3
    [file] = (home / ".cache" / "effnet" / "indexes").iterdir()
    assert file == as_plain_user(home, index_file, shards, None)
    assert sorted(os.listdir(shards[0].parent)) == [path.name for path in shards]
    assert as_plain_user(home, _open_and_count, shards) == (digest, 0)


def test_an_index_beside_the_shards_is_read_where_the_folder_is_read_only(read_only: tuple[list[Path], Path]) -> None:
    shards, home = read_only
    shards[0].parent.chmod(0o755)
    digest = open_index(shards).digest  # by the owner
    shards[0].parent.chmod(0o555)
    assert as_plain_user(home, _open_and_count, shards) == (digest, 0)
    os.utime(shards[1], ns=(0, 0))
    assert as_plain_user(home, _open_and_count, shards) == (digest, 3)
    assert as_plain_user(home, _open_and_count, shards) == (digest, 0)


def test_two_processes_of_one_number_on_two_nodes_can_write_the_index_at_once(
    three: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In containers, the processes of several nodes often have the same number."""
    monkeypatch.setattr(os, "getpid", lambda: 1)
    index, file = build_index(three), index_file(three, None)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
        list(pool.map(save_index, [index] * 40, [file] * 40))
    loaded = load_index(three, file)
    assert loaded is not None
    assert_equal(loaded, index)
    assert len(os.listdir(file.parent)) == len(three) + 1


def test_json_of_a_sample_is_not_read_past_a_megabyte(tmp_path: Path) -> None:
    text = json.dumps({"label": 1, "padding": "x" * (1 << 20)}).encode()
    with pytest.raises(DataError, match=r"\.json is not a label"):
        scan_shard(write_tar(tmp_path / "a.tar", [("a.jpg", b"1"), ("a.json", text)]))


def test_a_shard_of_long_names_is_indexed_from_its_first_header(tmp_path: Path) -> None:
    key = "k" * 150
    path = write_tar(
        tmp_path / "a.tar", [("x.jpg", b"1"), (f"{key}.jpg", b"2"), (f"{key}.cls", b"1")], tarfile.GNU_FORMAT
    )
    index = build_index([path])
    assert index.labels.tolist() == [-1, 1]
    run = io.BytesIO(path.read_bytes()[index.offsets[1] : index.offsets[1] + index.sizes[1]] + bytes(1024))
    with tarfile.open(fileobj=run) as archive:
        assert archive.getnames() == [f"{key}.jpg", f"{key}.cls"]
