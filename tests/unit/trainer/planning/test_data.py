"""Where the number of samples is from."""

from pathlib import Path

import pytest

from configs.problems import ConfigError
from datamodules.indexing.index_files import beside
from datamodules.indexing.opening import open_index
from datamodules.indexing.urls import expand
from datamodules.spoken_digits import TRAIN_SPEAKERS, TRAIN_TAKES, VALIDATION_SPEAKERS, planned
from tests.unit.trainer.settings import settings
from trainer.planning.data import DIGITS, IMAGENET, PHOTOGRAPH_BYTES, PYTHON_TEXTS, SPOKEN_DIGITS, find_samples


def test_the_index_says_how_many_there_are_and_how_large(shards: Path) -> None:
    index = open_index(expand(f"{shards}/toy-train-*.tar"))
    open_index(expand(f"{shards}/toy-validation-*.tar"))
    data = settings(
        data__train_shards=f"{shards}/toy-train-*.tar", data__val_shards=f"{shards}/toy-validation-*.tar"
    ).data

    found = find_samples(data, None)

    assert (found.training, found.validation) == (129, 37)
    assert found.bytes_each == pytest.approx(float(index.sizes.mean()))
    assert "index" in found.source


def test_without_an_index_the_list_of_shards_says_how_many_and_nothing_is_written(shards: Path, tmp_path: Path) -> None:
    for file in [*shards.glob("*.tar"), shards / "_info.json"]:
        (tmp_path / file.name).symlink_to(file)
    data = settings(
        data__train_shards=f"{tmp_path}/_info.json#train", data__val_shards=f"{tmp_path}/_info.json#validation"
    ).data
    before = sorted(tmp_path.iterdir())

    found = find_samples(data, None)

    assert (found.training, found.validation) == (129, 37)
    assert (found.bytes_each, found.source) == (PHOTOGRAPH_BYTES, "the list of data.train_shards")
    assert sorted(tmp_path.iterdir()) == before
    near = beside(expand(f"{tmp_path}/toy-train-*.tar"))
    assert near is not None
    assert not near.exists()


def test_what_the_user_says_comes_first(shards: Path) -> None:
    data = settings(data__train_shards=f"{shards}/toy-train-*.tar").data

    found = find_samples(data, 1000)

    assert (found.training, found.source) == (1000, "--samples")


def test_data_sets_that_are_known_need_no_index() -> None:
    imagenet = settings(data__train_shards="s3://bucket/imagenet1k-train-{0000..1023}.tar").data
    digits = settings(data__prepare="digits", data__num_classes=10).data

    found = find_samples(imagenet, None)
    assert (found.training, found.validation) == IMAGENET
    assert (find_samples(digits, None).training, find_samples(digits, None).validation) == DIGITS
    texts = find_samples(settings(data__prepare="python-texts", data__num_classes=4).data, None)
    assert (texts.training, texts.validation, texts.source) == (*PYTHON_TEXTS, "the texts of Python 3.11")
    spoken = find_samples(settings(data__prepare="spoken-digits", data__num_classes=10).data, None)
    assert (spoken.training, spoken.validation) == SPOKEN_DIGITS
    takes = [len(list(planned(*each))) for each in ((TRAIN_SPEAKERS, TRAIN_TAKES), (VALIDATION_SPEAKERS, 6))]
    assert takes == [*SPOKEN_DIGITS]


def test_data_that_nothing_is_known_of_needs_a_number() -> None:
    with pytest.raises(ConfigError, match="--samples"):
        find_samples(settings().data, None)
