"""`effnet shards verify`: every kind of damage, each with shard, key and reason; and nothing about shards in order."""

import json
from pathlib import Path

import pytest

from datamodules.inspecting.verify import Bad, verify
from datamodules.making.shards import split_of
from tests.conftest import picture
from tests.unit.datamodules.archives import tar_bytes, write_tar
from tests.unit.datamodules.sources import jpeg, shards_command, shards_main


def sample(key: str, contents: bytes, label: str | None = "0", extension: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", contents)] + ([(f"{key}.cls", label.encode())] if label is not None else [])


@pytest.fixture
def good(tmp_path: Path) -> list[Path]:
    """Two shards, with all that training takes."""
    exotic = {"cmyk": jpeg(1, mode="CMYK"), "grey": jpeg(2, mode="L"), "webp": picture(3, file_format="WEBP")}
    first = [member for key, contents in exotic.items() for member in sample(key, contents)]
    second = [*sample("n01/a", picture(1), extension="png"), *sample("n02/a", jpeg(4), "2"), ("notes", b"no extension")]
    second += [("x.jpg", jpeg(5)), ("x.json", b'{"label": 1}')]
    return [write_tar(tmp_path / f"toy-train-{i:05d}.tar", members) for i, members in enumerate((first, second))]


def test_shards_in_order_have_nothing_bad(good: list[Path]) -> None:
    for workers in (1, 2):
        assert verify(good, num_classes=3, workers=workers) == (6, [])


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        (sample("k", jpeg(1, (64, 64))[:-300]), "jpg: a damaged image: image file is truncated"),
        (sample("k", b""), "jpg: not a readable image (not JPEG, PNG, WebP, GIF or BMP: empty)"),
        (sample("k", b"<html>"), "jpg: not a readable image (not JPEG, PNG, WebP, GIF or BMP: begins with b'<html>')"),
        (sample("k", picture(1)[:-60]), "jpg: a damaged image: "),
        (sample("k", picture(1)[:100] + b"\0" * 40 + picture(1)[140:]), "jpg: a damaged image: "),
        (sample("k", jpeg(1), "3"), "label 3, but there are 3 classes"),
        (sample("k", jpeg(1), "-2"), "label -2: labels begin with 0"),
        (sample("k", jpeg(1), "cat"), ".cls is not a label: 'cat'"),
        (sample("k", jpeg(1), None), "no label"),
        ([("k.cls", b"1")], "has cls, none of jpg, jpeg, png, webp"),
        ([*sample("k", jpeg(1)), ("k.jpg", jpeg(1))], "has jpg, cls, jpg: one of them twice"),
    ],
)
def test_every_kind_of_bad_sample_is_reported_with_its_reason(
    members: list[tuple[str, bytes]], reason: str, good: list[Path]
) -> None:
    bad_shard = write_tar(good[0].parent / "toy-train-00002.tar", [*members, *sample("after", jpeg(9))])
    samples, bad = verify([*good, bad_shard], num_classes=3)
    assert samples == 8
    [found] = bad
    assert (found.shard, found.key) == ("toy-train-00002.tar", "k")
    assert found.reason.startswith(reason)


def test_a_sample_may_have_several_faults(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("k.jpg", b""), ("k.png", picture(1)), ("k.cls", b"x")])
    _, bad = verify([path])
    assert [each.reason.split(":")[0] for each in bad] == [".cls is not a label", "jpg"]


def test_a_damaged_archive_is_reported_and_what_comes_before_is_looked_at(good: list[Path]) -> None:
    whole = tar_bytes([*sample("a", b"broken"), *sample("b", jpeg(1)), *sample("c", b"cut")])
    cut = good[0].with_name("toy-train-00002.tar")
    cut.write_bytes(whole[: whole.index(b"c.jpg") + 600])
    empty = write_tar(good[0].with_name("toy-train-00003.tar"), [("readme", b"")])
    nothing = good[0].with_name("toy-train-00004.tar")
    nothing.write_bytes(b"")
    samples, bad = verify([*good, cut, empty, nothing], workers=2)
    assert samples == 8
    assert [(each.shard, each.key) for each in bad] == [
        ("toy-train-00002.tar", "a"),
        ("toy-train-00002.tar", None),
        ("toy-train-00003.tar", None),
        ("toy-train-00004.tar", None),
    ]
    assert bad[1].reason.startswith("truncated tar")
    assert bad[2].reason == "no sample in it"
    assert bad[3].reason.startswith("truncated tar")


def test_keys_that_come_twice_in_a_split_are_reported_and_those_of_other_splits_are_not(tmp_path: Path) -> None:
    def shard(name: str, *keys: str) -> Path:
        return write_tar(tmp_path / name, [member for key in keys for member in sample(key, jpeg(1))])

    paths = [
        shard("toy-train-00000.tar", "a", "b", "c"),
        shard("toy-train-00001.tar", "d", "b"),
        shard("toy-train-00002.tar", "b", "e", "f", "e"),
        shard("toy-validation-00000.tar", "a", "f"),
    ]
    samples, bad = verify(paths)
    assert samples == 11
    assert bad == [
        Bad("toy-train-00001.tar", "b", "its key is also in toy-train-00000.tar"),
        Bad("toy-train-00002.tar", "b", "its key is also in toy-train-00000.tar"),
        Bad("toy-train-00002.tar", "e", "its key is also in toy-train-00002.tar"),
    ]


def test_shards_of_one_split_share_their_name_without_the_number() -> None:
    assert split_of(Path("imagenet1k-train-0001.tar")) == "imagenet1k-train"
    assert split_of(Path("a/val_07.tar")) == "val"
    assert split_of(Path("000123.tar")) == "000123"
    assert split_of(Path("data.tar")) == "data"


def test_labels_go_up_to_the_classes_beside_the_shards(good: list[Path]) -> None:
    (good[0].parent / "classes.json").write_text('["a", "b"]')
    _, bad = verify(good)
    assert bad == [Bad("toy-train-00001.tar", "n02/a", "label 2, but there are 2 classes")]
    assert verify(good, num_classes=3)[1] == []


def test_a_shard_with_another_number_of_samples_than_its_list_says_is_bad(good: list[Path], tmp_path: Path) -> None:
    (tmp_path / "sizes.json").write_text('{"toy-train-00000.tar": 3, "toy-train-00001.tar": 4}')
    output = shards_main("verify", tmp_path / "sizes.json", "--num-classes", 3, "--workers", 1, expected=93)
    assert "toy-train-00001.tar: (shard): 3 samples, but its list says 4" in output
    assert "6 samples in 2 shards: 1 bad" in output


def test_the_command_prints_and_writes_each_finding_and_exits_with_93(good: list[Path], tmp_path: Path) -> None:
    pattern = str(tmp_path / "toy-train-*.tar")
    assert "6 samples in 2 shards: all good" in shards_command("verify", pattern, "--num-classes", 3)
    write_tar(tmp_path / "toy-train-00002.tar", sample("dir/größe", b"<html>"))
    (tmp_path / "toy-train-00003.tar").write_bytes(b"x" * 100)
    file = tmp_path / "found.json"
    output = shards_command("verify", pattern, "--json", file, "--workers", 2, expected=93)
    reason = "not a readable image (not JPEG, PNG, WebP, GIF or BMP: begins with b'<html>')"
    assert f"toy-train-00002.tar: dir/größe: jpg: {reason}" in output
    assert "toy-train-00003.tar: (shard): truncated tar" in output
    assert "7 samples in 4 shards: 2 bad" in output
    found = json.loads(file.read_text(encoding="utf-8"))
    assert (found["shards"], found["samples"]) == (4, 7)
    assert [(each["shard"], each["key"]) for each in found["bad"]] == [
        ("toy-train-00002.tar", "dir/größe"),
        ("toy-train-00003.tar", None),
    ]


def test_mistakes_of_the_user_are_one_message(good: list[Path], tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text("{")
    assert "classes.json: not JSON" in shards_main("verify", tmp_path, expected=93)
    assert "gone.tar does not exist" in shards_main("verify", tmp_path / "gone.tar", expected=93)
