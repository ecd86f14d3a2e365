"""Folders of images: the labels of torchvision's ImageFolder, every image once, nothing left out in silence."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torchvision

from configs.problems import DataError
from datamodules.making.listing import Listing, Strings, list_image_folder
from tests.conftest import picture


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str) -> Path:
        for i, name in enumerate(names):
            path = tmp_path / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i, size=8))
        return tmp_path / "images"

    return make


def keys(listing: Listing) -> list[str]:
    return [listing.keys[i] for i in range(len(listing))]


def contents(listing: Listing) -> list[bytes]:
    places = listing.places()
    return [Path(places[i].file).read_bytes() for i in range(len(listing))]


def test_labels_are_those_of_torchvisions_image_folder(image_folder: Callable[..., Path]) -> None:
    root = image_folder("n02/b.JPEG", "n01/a.jpg", "n10/c.png", "n1/d.webp", "n02/sub/e.jpeg")
    listing = list_image_folder(root)
    expected = torchvision.datasets.ImageFolder(str(root))
    assert list(listing.classes or ()) == expected.classes
    assert sorted(zip(contents(listing), listing.labels.tolist(), strict=True)) == sorted(
        (Path(path).read_bytes(), label) for path, label in expected.samples
    )
    assert keys(listing) == ["n01_a", "n02_b", "n02_sub_e", "n1_d", "n10_c"]
    assert listing.image_bytes == sum(map(len, contents(listing)))


def test_images_whose_names_would_give_one_key_all_get_in(image_folder: Callable[..., Path]) -> None:
    names = ["a/b_c.png", "a_b/c.png", "a/b.c.png", "a/b.png", "a/b.jpg", "a/b.JPG", "a/b_c_1.png", "a/b_1.png"]
    listing = list_image_folder(image_folder(*names))
    assert len(set(keys(listing))) == len(names)
    assert not any("." in key for key in keys(listing))
    assert Counter(contents(listing)) == Counter(picture(i, size=8) for i in range(len(names)))


def test_hidden_files_and_what_is_no_image_are_left_out(image_folder: Callable[..., Path]) -> None:
    root = image_folder(
        "a/x.jpg", "a/._x.jpg", ".cache/y.jpg", "a/.thumbs/z.jpg", "a/Thumbs.db", "a/x.txt", "a/d.jpg/z.png", "top.jpg"
    )
    listing = list_image_folder(root)
    assert listing.classes == ("a",)
    assert keys(listing) == ["a_d_jpg_z", "a_x"]


def test_links_to_folders_and_images_are_followed(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Subsets of ImageNet are often made of them."""
    root = image_folder("a/x.png", "a/sub/y.png")
    subset = tmp_path / "subset"
    (subset / "c").mkdir(parents=True)
    (subset / "b").symlink_to(root / "a")
    (subset / "c" / "linked.png").symlink_to(root / "a" / "x.png")
    (subset / "c" / "folder").symlink_to(root / "a" / "sub")
    assert keys(list_image_folder(subset)) == ["b_sub_y", "b_x", "c_folder_y", "c_linked"]


@pytest.mark.parametrize("target", ["..", ".", "sub"])
def test_a_link_by_which_images_would_come_twice_is_refused(target: str, image_folder: Callable[..., Path]) -> None:
    root = image_folder("a/x.png", "a/sub/y.png", "b/z.png")
    (root / "a" / "zz").symlink_to(target)
    with pytest.raises(DataError, match=r"is a link to .*: its images would come twice"):
        list_image_folder(root)


def test_a_pipe_is_no_image(image_folder: Callable[..., Path]) -> None:
    """Reading it would wait for ever."""
    root = image_folder("a/x.png")
    os.mkfifo(root / "a" / "pipe.png")
    with pytest.raises(DataError, match=r"pipe\.png is no file"):
        list_image_folder(root)


def test_a_dangling_link_is_an_error_that_names_it(image_folder: Callable[..., Path]) -> None:
    root = image_folder("a/x.png")
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(OSError, match=r"gone\.png"):
        list_image_folder(root)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every folder")
def test_a_folder_that_cannot_be_read_is_an_error(image_folder: Callable[..., Path]) -> None:
    root = image_folder("a/x.png", "a/locked/y.png")
    (root / "a" / "locked").chmod(0)
    with pytest.raises(PermissionError):
        list_image_folder(root)


@pytest.mark.parametrize(
    ("names", "what"),
    [
        ((), "no folder per class in it"),
        (("x.jpg",), "no folder per class in it"),
        (("a/x.jpg", "b/x.txt"), r"images/b: no image \(jpg, jpeg, png, webp\) in it"),
    ],
)
def test_a_folder_without_classes_or_images_is_a_data_error(
    names: tuple[str, ...], what: str, image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    with pytest.raises(DataError, match=what):
        list_image_folder(image_folder(*names))


def test_strings_come_back_whatever_is_in_them() -> None:
    items = ["", "a", "größe/猫", "with\nline", "\udcff not utf-8"]
    strings = Strings(items)
    assert [strings[i] for i in range(len(strings))] == items
    assert list(strings) == items
    assert strings.digest() == Strings(items).digest() != Strings(items[::-1]).digest()
    assert Strings(["ab", "c"]).digest() != Strings(["a", "bc"]).digest()
    for number in (-1, len(items)):
        with pytest.raises(IndexError):
            strings[number]
