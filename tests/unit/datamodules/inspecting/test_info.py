"""`effnet shards info`: figures that can be counted by hand, and a contact sheet with every image on it."""

import io
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from configs.problems import DataError
from datamodules.indexing.building import build_index
from datamodules.inspecting.contact_sheet import MARGIN, WIDTH, contact_sheet
from datamodules.inspecting.survey import Sample, histogram, quantiles, random_samples, survey
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar
from tests.unit.datamodules.sources import jpeg, shards_command, shards_main


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two training shards with 6 images of class 0, 2 of class 1 and 1 of class 3; a validation shard; 5 names."""
    members = []
    for i, label in enumerate([0] * 6 + [1] * 2 + [3]):
        contents, extension = (picture(i, size=20), "png") if i == 8 else (jpeg(i, (40 + i, 30)), "jpg")
        members.append([(f"img{i}.{extension}", contents), (f"img{i}.cls", str(label).encode())])
    write_tar(tmp_path / "toy-train-00000.tar", [each for pair in members[:4] for each in pair])
    write_tar(tmp_path / "toy-train-00001.tar", [each for pair in members[4:] for each in pair])
    write_tar(tmp_path / "toy-validation-00000.tar", members[0])
    (tmp_path / "classes.json").write_text(json.dumps(["cat", "dog", "none [bold]", "Größe", "n02123045"]))
    return tmp_path


def test_a_survey_counts_samples_classes_and_sizes(folder: Path) -> None:
    found = survey(build_index(sorted(folder.glob("toy-train-*.tar"))), seed=0, num_classes=5)
    assert found.samples == 9
    assert found.shard_samples.tolist() == [4, 5]
    assert found.shard_bytes.tolist() == [path.stat().st_size for path in sorted(folder.glob("toy-train-*.tar"))]
    assert found.class_samples.tolist() == [6, 2, 0, 1, 0]
    assert sorted(found.figures["width, pixels"]) == [20, *range(40, 48)]
    assert sorted(set(found.figures["height, pixels"].tolist())) == [20, 30]
    assert found.kinds == {"JPEG RGB": 8, "PNG RGB": 1}
    assert sorted(found.sample_bytes) == sorted(
        [len(picture(8, size=20)), *(len(jpeg(i, (40 + i, 30))) for i in range(8))]
    )


def test_random_samples_depend_on_the_seed_and_do_not_repeat(folder: Path) -> None:
    index = build_index(sorted(folder.glob("toy-train-*.tar")))
    drawn = [[sample.key for sample in random_samples(index, 4, seed=seed)] for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 4
    everything = list(random_samples(index, 100, seed=0))
    assert {sample.key: sample.label for sample in everything} == {
        f"img{i}": label for i, label in enumerate([0] * 6 + [1] * 2 + [3])
    }
    assert everything[0].contents == jpeg(0, (40, 30))


def test_bins_cover_all_values_once() -> None:
    for values in ([5], [732, 1300, 1300, 900], [0, 1, 2, 3], list(range(100))):
        bins = histogram(np.array(values))
        assert sum(count for _, _, count in bins) == len(values)
        assert len(bins) <= 8
        assert (bins[0][0], bins[-1][1]) == (min(values), max(values))
        assert all(before[1] + 1 == after[0] for before, after in pairwise(bins))
    assert histogram(np.array([0, 1, 3, 3])) == [(0, 0, 1), (1, 1, 1), (2, 2, 0), (3, 3, 2)]


def test_quantiles_are_values_that_occur() -> None:
    assert quantiles(np.array([1, 10, 100])) == [1, 1, 10, 100, 100]


def test_the_command_prints_each_split(folder: Path) -> None:
    output = shards_command("info", folder)
    train, validation = output[output.index("toy-train") :].split("toy-validation")
    assert re.search(r"^toy-train: 9 samples in 2 shards, \d+\.\d kB", train, re.MULTILINE)
    assert re.search(r"^samples of a shard +4 +4 +4 +5 +5$|^samples of a shard +4( +[45]){3} +5$", train, re.MULTILINE)
    assert re.search(r"^samples of a class +0 +0 +1 +6 +6$", train, re.MULTILINE)
    assert re.search(r"^width, pixels \(9 images\) +20 .* 47$", train, re.MULTILINE)
    assert "formats: JPEG RGB 88.9%, PNG RGB 11.1%" in train
    assert "classes: 5, smallest 2 (none [bold]) with 0, largest 0 (cat) with 6" in train
    assert re.search(r"0 to 0 samples +█{40} 2", train)
    assert "1 samples in 1 shards" in validation
    assert "no module" not in output.lower()


def test_damage_is_a_message_that_names_the_command_to_use(tmp_path: Path) -> None:
    write_tar(tmp_path / "a-0.tar", [("k.jpg", b"<html>"), ("k.cls", b"0")])
    output = shards_main("info", tmp_path, expected=93)
    assert "sample k: not JPEG, PNG, WebP, GIF or BMP: begins with" in output
    assert "effnet shards verify" in output
    with pytest.raises(DataError, match="effnet shards verify"):
        contact_sheet([Sample("k", 0, b"x")], None, title="", subtitle="")


# contact sheets


def test_the_contact_sheet_is_a_png_of_one_split(folder: Path) -> None:
    file = folder / "sheets" / "train.png"
    output = shards_main("info", folder / "toy-train-{00000..00001}.tar", "--contact-sheet", file)
    assert f"contact sheet: {file}" in output
    with PilImage.open(file) as image:
        assert (image.format, image.width) == ("PNG", WIDTH)
    assert "shows one split, and these are toy-train, toy-validation" in shards_main(
        "info", folder, "--contact-sheet", file, expected=93
    )


def test_every_image_is_on_the_page_in_rows_that_fill_it() -> None:
    colours = [(250, 0, 0), (0, 160, 0), (0, 0, 250), (250, 0, 250), (0, 170, 170)]
    samples = []
    for i in range(30):
        buffer = io.BytesIO()
        size = [(300, 200), (200, 300), (200, 200), (900, 100), (100, 900)][i % 5]
        PilImage.new("RGB", size, colours[i % 5]).save(buffer, format="PNG")
        samples.append(Sample(f"k{i}", i % 5, buffer.getvalue()))
    contents = contact_sheet(samples, ["cat", "Größe", "n02123045", "x" * 200], title="toy", subtitle="thirty")
    page = np.asarray(PilImage.open(io.BytesIO(contents)).convert("RGB")).astype(int)
    assert page.shape[1] == WIDTH
    shown = np.stack([(np.abs(page - colour).sum(axis=-1) < 12) for colour in colours])
    areas = shown.sum(axis=(1, 2))
    assert (areas > 6 * 100 * 150).all()  # each at least about that large
    columns = np.flatnonzero(shown.any(axis=(0, 1)))
    assert columns[0] - MARGIN in range(0, 3)
    assert WIDTH - MARGIN - columns[-1] in range(0, 4)
    tops = [np.flatnonzero(colour.any(axis=1))[0] for colour in shown]
    assert tops == sorted(tops)  # by label
    again = contact_sheet(samples[::-1], ["cat", "Größe", "n02123045", "x" * 200], title="toy", subtitle="thirty")
    assert again == contents


@pytest.mark.parametrize("count", [1, 2, 6])
def test_few_images_are_not_blown_up(count: int) -> None:
    contents = contact_sheet([Sample(str(i), 0, jpeg(i)) for i in range(count)], None, title="t", subtitle="s")
    page = PilImage.open(io.BytesIO(contents))
    assert page.width == WIDTH
    assert page.height < 480
