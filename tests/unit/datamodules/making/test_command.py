"""`effnet shards build` as its users start it: sources recognised, options that have no effect refused."""

import json
from pathlib import Path

import pytest

from tests.unit.datamodules.archives import write_samples
from tests.unit.datamodules.sources import hashes, image_folder, samples_in, shards_command, shards_main


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "images")


def test_names_split_and_seed_are_options(source: Path, tmp_path: Path) -> None:
    options = ("--num-shards", 2, "--workers", 1)
    shards_main("build", source, tmp_path / "out", "--name", "toy", "--split", "test", *options)
    assert sorted(hashes(tmp_path / "out")) == ["toy-test-00000.tar", "toy-test-00001.tar"]
    shards_main("build", source, tmp_path / "other", "--seed", 7, *options)
    assert sorted(hashes(tmp_path / "other")) == ["imagenet1k-train-00000.tar", "imagenet1k-train-00001.tar"]
    assert samples_in(tmp_path / "out") == samples_in(tmp_path / "other")
    assert list(samples_in(tmp_path / "out")) != list(samples_in(tmp_path / "other"))


def test_a_shard_size_takes_the_place_of_their_number(source: Path, tmp_path: Path) -> None:
    shards_main("build", source, tmp_path / "out", "--shard-size-bytes", 10**9)
    assert len(hashes(tmp_path / "out")) == 1
    assert len(samples_in(tmp_path / "out")) == 12


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (("--num-shards", "2", "--shard-size-bytes", "9"), "--num-shards is 2 and --shard-size-bytes 9: give one"),
        (("--quality", "80"), "--quality is 80, but without --resize no image is encoded"),
        (("--devkit", "kit.tar.gz"), "--devkit given, but"),
        (("--label-column", "x", "--path-column", "y"), "--path-column and --label-column given, but"),
        (("--split", "test"), "test: 12 images cannot fill 64 shards"),
        ((), "train: 12 images cannot fill 1024 shards"),
        (
            ("--name", "../elsewhere", "--num-shards", "2"),
            "--name is '../elsewhere': it is a part of the shards' names",
        ),
        (("--split", "a/b", "--num-shards", "2"), "--split is 'a/b': it is a part of the shards' names"),
        (("--name", "", "--num-shards", "2"), "--name is '': it is a part of the shards' names"),
    ],
)
def test_mistakes_are_one_message_and_nothing_is_written(
    options: tuple[str, ...], what: str, source: Path, tmp_path: Path
) -> None:
    output = shards_main("build", source, tmp_path / "out", *options, expected=93)
    assert output.startswith("error: ")
    assert what in output
    assert len(output.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_what_is_no_source_is_one_message(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    shard = write_samples(tmp_path / "shard.tar", 3)
    for source, what in (
        (tmp_path / "gone", "gone does not exist: a folder of classes, an ILSVRC2012 tar, a CSV or Parquet file"),
        (tmp_path / "notes.txt", "notes.txt is none of these"),
        (tmp_path / "gone.tar", "gone.tar"),
        (tmp_path / "gone.csv", "gone.csv does not exist"),
        (shard, "shard.tar is neither ILSVRC2012_img_train.tar"),
    ):
        output = shards_main("build", source, tmp_path / "out", expected=93)
        assert output.startswith("error: ")
        assert what in output
        assert len(output.splitlines()) == 1


def test_the_training_configuration_reads_what_was_built(source: Path, tmp_path: Path) -> None:
    shards_command("build", source, tmp_path / "out", "--num-shards", 2, "--resize", 16)
    shards_command("index", tmp_path / "out")
    assert "12 samples in 2 shards: all good" in shards_command("verify", tmp_path / "out")
    info = json.loads((tmp_path / "out" / "_info.json").read_text())
    assert info["splits"]["train"]["shard_lengths"] == [6, 6]
