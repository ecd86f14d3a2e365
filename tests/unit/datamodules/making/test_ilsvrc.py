"""ILSVRC2012 as downloaded: tar of tars, validation tar, development kit. Real files of these formats, small."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from configs.problems import DataError
from datamodules.making.ilsvrc import list_ilsvrc, read_devkit
from tests.unit.datamodules.archives import tar_bytes, write_tar
from tests.unit.datamodules.sources import (
    GROUND_TRUTH,
    WNIDS,
    devkit,
    devkit_archive,
    jpeg,
    samples_in,
    shards_command,
    shards_main,
    tar_with_times,
    train_tar,
    validation_tar,
)


def test_the_training_tar_becomes_shards_without_being_unpacked(tmp_path: Path) -> None:
    archive, expected = train_tar(tmp_path / "ILSVRC2012_img_train.tar")
    output = shards_command("build", archive, tmp_path / "out", "--num-shards", 3, "--workers", 2)
    assert "12 images of 3 classes in 3 shards" in output
    found = samples_in(tmp_path / "out", "imagenet1k-train-*.tar")
    assert {key: (contents, label) for key, (_, contents, label) in found.items()} == expected
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == sorted(WNIDS)
    assert {key for key, (extension, _, _) in found.items() if extension == "png"} == {"n02000000_1"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ILSVRC2012_img_train.tar", "out"]


def test_the_validation_tar_gets_labels_by_wnid_and_not_by_the_kits_ids(tmp_path: Path) -> None:
    archive, expected = validation_tar(tmp_path / "ILSVRC2012_img_val.tar")
    kit = devkit_archive(tmp_path)
    shards_main("build", archive, tmp_path / "out", "--devkit", kit, "--num-shards", 2, "--workers", 1)
    found = samples_in(tmp_path / "out", "imagenet1k-validation-*.tar")
    assert {key: (contents, label) for key, (_, contents, label) in found.items()} == expected
    assert [label for _, label in expected.values()] == [1, 2, 2, 0, 1, 0, 2]  # not GROUND_TRUTH less one
    assert json.loads((tmp_path / "out" / "classes.json").read_text()) == sorted(WNIDS)


def test_both_splits_go_into_one_folder_with_the_same_labels(tmp_path: Path) -> None:
    train, _ = train_tar(tmp_path / "train.tar")
    validation, _ = validation_tar(tmp_path / "val.tar")
    kit = devkit(tmp_path / "kit")
    for archive, shards in ((train, 3), (validation, 2)):
        shards_main("build", archive, tmp_path / "out", "--devkit", kit, "--num-shards", shards, "--workers", 1)
    splits = json.loads((tmp_path / "out" / "_info.json").read_text())["splits"]
    assert {name: split["num_samples"] for name, split in splits.items()} == {"train": 12, "validation": 7}


def test_places_name_the_bytes_in_the_outer_file(tmp_path: Path) -> None:
    archive, expected = train_tar(tmp_path / "train.tar")
    listing, split = list_ilsvrc(archive, None)
    assert split == "train"
    places = listing.places()
    data = archive.read_bytes()
    for i in range(len(listing)):
        place = places[i]
        contents = data[place.offset : place.offset + place.size]
        assert (contents, int(listing.labels[i])) == expected[listing.keys[i]]
    assert listing.image_bytes == sum(len(contents) for contents, _ in expected.values())


def test_the_kit_is_read_from_folder_archive_and_the_folder_above_it(tmp_path: Path) -> None:
    kit = devkit(tmp_path / "folder")
    kits = [read_devkit(source) for source in (kit, kit.parent, devkit_archive(tmp_path))]
    assert kits[0] == kits[1] == kits[2]
    assert kits[0].wnids == tuple(sorted(WNIDS))
    assert len(kits[0].validation_labels) == len(GROUND_TRUTH)


def test_a_kit_without_its_parts_or_with_others_is_a_data_error(tmp_path: Path) -> None:
    kit = devkit(tmp_path / "a")
    truth = kit / "data" / "ILSVRC2012_validation_ground_truth.txt"
    for text in ("1\n4\n", "1\nx\n"):  # 4 is no leaf
        truth.write_text(text)
        with pytest.raises(DataError, match="has an id that is no class"):
            read_devkit(kit)
    truth.unlink()
    with pytest.raises(DataError, match=r"no data/ILSVRC2012_validation_ground_truth\.txt in it"):
        read_devkit(kit)
    with pytest.raises(DataError, match=r"no data/meta\.mat and no data/ILSVRC2012_val"):
        read_devkit(write_tar(tmp_path / "other.tar", [("x", b"y")]))
    (tmp_path / "no.tar.gz").write_bytes(b"<html>")
    with pytest.raises(DataError, match="not the development kit"):
        read_devkit(tmp_path / "no.tar.gz")
    kit = devkit(tmp_path / "b")
    savemat(kit / "data" / "meta.mat", {"other": np.zeros(3)})
    with pytest.raises(DataError, match=r"data/meta\.mat is not that of ILSVRC2012"):
        read_devkit(kit)
    (kit / "data" / "meta.mat").write_bytes(b"no matlab file at all, but long enough to be taken for one" * 9)
    with pytest.raises(DataError, match=r"data/meta\.mat is not that of ILSVRC2012"):
        read_devkit(kit)


def test_archives_that_do_not_fit_the_kit_are_refused(tmp_path: Path) -> None:
    kit = devkit(tmp_path / "kit")
    archive, _ = validation_tar(tmp_path / "val.tar")
    with pytest.raises(DataError, match=r"their labels are in the development kit \(--devkit\)"):
        list_ilsvrc(archive, None)
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n2\n")
    with pytest.raises(DataError, match="has 7 images, the development kit labels 2"):
        list_ilsvrc(archive, kit)
    twice = [("a/ILSVRC2012_val_00000001.JPEG", b"x"), ("b/ILSVRC2012_val_00000001.JPEG", b"x")]
    with pytest.raises(DataError, match="not numbered from 1 to 2"):
        list_ilsvrc(write_tar(tmp_path / "twice.tar", twice), kit)
    inner = tar_bytes([("n09000000_1.JPEG", jpeg(1))])
    with pytest.raises(DataError, match=r"1 classes, the development kit 3: missing n01000000, .*unknown n09000000"):
        list_ilsvrc(write_tar(tmp_path / "one.tar", [("n09000000.tar", inner)]), kit)


def test_other_tars_are_told_from_those_of_ilsvrc(tmp_path: Path) -> None:
    for members in ([("a.jpg", b"x"), ("a.cls", b"0")], [], [("n01000000.tar", b""), ("x.txt", b"")]):
        with pytest.raises(DataError, match=r"is neither ILSVRC2012_img_train\.tar .* begins with "):
            list_ilsvrc(write_tar(tmp_path / "other.tar", members), None)


def test_a_download_that_was_cut_is_found_before_anything_is_written(tmp_path: Path) -> None:
    archive, _ = train_tar(tmp_path / "train.tar")
    whole = archive.read_bytes()
    archive.write_bytes(whole[: len(whole) // 2])
    output = shards_main("build", archive, tmp_path / "out", "--num-shards", 2, expected=93)
    assert "train.tar: truncated" in output
    inner = tar_with_times([("n01000000_0.JPEG", jpeg(0))])
    write_tar(archive, [("n01000000.tar", inner[:700])])
    output = shards_main("build", archive, tmp_path / "out", "--num-shards", 2, expected=93)
    assert "train.tar: n01000000.tar: truncated" in output
    write_tar(archive, [("n01000000.tar", tar_with_times([]))])
    output = shards_main("build", archive, tmp_path / "out", "--num-shards", 2, expected=93)
    assert "n01000000.tar: no image in it" in output
    assert not (tmp_path / "out").exists()


def test_without_scipy_the_message_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "hidden" / "scipy").mkdir(parents=True)
    (tmp_path / "hidden" / "scipy" / "__init__.py").write_text("raise ImportError('not here')")
    archive, _ = validation_tar(tmp_path / "val.tar")
    output = shards_command(
        "build",
        archive,
        tmp_path / "out",
        "--devkit",
        devkit(tmp_path / "kit"),
        expected=93,
        PYTHONPATH=str(tmp_path / "hidden"),
    )
    assert "pip install 'effnet[ilsvrc]'" in output


def test_long_names_and_folders_in_the_inner_tars_are_read(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        member = tarfile.TarInfo("folder/" + "n01000000_" + "7" * 120 + ".JPEG")
        member.size = len(jpeg(1))
        archive.addfile(member, io.BytesIO(jpeg(1)))
    listing, _ = list_ilsvrc(write_tar(tmp_path / "t.tar", [("n01000000.tar", buffer.getvalue())]), None)
    assert [listing.keys[i] for i in range(len(listing))] == ["n01000000_" + "7" * 120]
    place = listing.places()[0]
    assert (tmp_path / "t.tar").read_bytes()[place.offset : place.offset + place.size] == jpeg(1)
