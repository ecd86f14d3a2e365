"""Tables of images: CSV, and Parquet as PyArrow and Hugging Face's datasets write it."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from configs.problems import DataError
from datamodules.making.manifest import list_manifest, manifest_files
from tests.conftest import picture
from tests.unit.datamodules.sources import hashes, jpeg, samples_in, shards_command, shards_main

COUNT = 10


def write_csv(path: Path, rows: Sequence[Sequence[object]], header: Sequence[str] = ("path", "label")) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([header, *rows])
    return path


def write_parquet(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = columns if isinstance(columns, pa.Table) else pa.table(columns)
    pq.write_table(table, path, row_group_size=4, **options)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images in a folder, one of them a PNG named JPEG."""
    folder = tmp_path / "data" / "images"
    folder.mkdir(parents=True)
    for i in range(COUNT):
        (folder / f"{i}.jpg").write_bytes(picture(i) if i == 3 else jpeg(i))
    return folder


def labels_of(table: Path, **options: str) -> tuple[dict[str, int], tuple[str, ...] | None]:
    listing = list_manifest([table], copy_to=table.parent / ".copy", **options)
    return {listing.keys[i]: int(listing.labels[i]) for i in range(len(listing))}, listing.classes


def test_a_csv_of_paths_and_names_becomes_shards(images: Path, tmp_path: Path) -> None:
    names = ("dog", "Größe", "cat")
    rows = [(f"images/{i}.jpg", names[i % 3]) for i in range(COUNT)]
    table = write_csv(images.parent / "table.csv", rows)
    output = shards_command("build", table, tmp_path / "out", "--name", "toy", "--num-shards", 2, "--workers", 1)
    assert "10 images of 3 classes in 2 shards" in output
    assert json.loads((tmp_path / "out" / "classes.json").read_text(encoding="utf-8")) == ["Größe", "cat", "dog"]
    assert samples_in(tmp_path / "out") == {
        f"images_{i}": ("png" if i == 3 else "jpg", (images / f"{i}.jpg").read_bytes(), (2, 0, 1)[i % 3])
        for i in range(COUNT)
    }


def test_whole_numbers_stay_and_other_text_is_a_name(images: Path) -> None:
    def read(*labels: str) -> tuple[list[int], tuple[str, ...] | None]:
        table = write_csv(images.parent / "table.csv", [(f"images/{i}.jpg", text) for i, text in enumerate(labels)])
        found, classes = labels_of(table)
        return list(found.values()), classes

    assert read("7", "0", "7") == ([7, 0, 7], None)
    assert read("007", "008") == ([0, 1], ("007", "008"))
    assert read("1", "one") == ([0, 1], ("1", "one"))
    with pytest.raises(DataError, match="a label is -1: they go from 0 to 2147483647"):
        read("0", "-1")


def test_columns_are_chosen_by_name_and_paths_may_be_absolute(images: Path, tmp_path: Path) -> None:
    rows = [(i, str(images / f"{i}.jpg"), "x,y") for i in range(3)]
    table = write_csv(tmp_path / "elsewhere" / "t.csv", rows, header=("id", "file", "what"))
    labels, classes = labels_of(table, path_column="file", label_column="what")
    assert classes == ("x,y",)
    assert len(labels) == 3
    assert not any("." in key or "/" in key for key in labels)
    with pytest.raises(DataError, match=r"no column path or image or bytes, but id, file, what: .*--path-column"):
        labels_of(table)
    with pytest.raises(DataError, match=r"no column kind, but id, file, what: .*--label-column"):
        labels_of(table, path_column="file", label_column="kind")


def test_faults_of_a_csv_are_one_message_with_the_place(images: Path) -> None:
    folder = images.parent
    with pytest.raises(DataError, match=r"table\.csv: 2 of 3 images do not exist: .*gone\.jpg, .*lost\.jpg"):
        labels_of(write_csv(folder / "table.csv", [("gone.jpg", 1), ("images/1.jpg", 1), ("lost.jpg", 1)]))
    with pytest.raises(DataError, match="line 3 has no label"):
        labels_of(write_csv(folder / "table.csv", [("images/1.jpg", 1), ("images/2.jpg", "")]))
    with pytest.raises(DataError, match="line 2 has no label"):
        labels_of(write_csv(folder / "table.csv", [("images/1.jpg",)]))
    with pytest.raises(DataError, match="no row in it"):
        labels_of(write_csv(folder / "table.csv", []))
    with pytest.raises(DataError, match=r"a label is 2147483648: they go from 0 to 2147483647"):
        labels_of(write_csv(folder / "table.csv", [("images/1.jpg", 0), ("images/2.jpg", 2**31)]))
    with pytest.raises(DataError, match=r"table\.csv: a label has 5,000 digits"):
        labels_of(write_csv(folder / "table.csv", [("images/1.jpg", "7" * 5000)]))
    with pytest.raises(DataError, match=r"'.*images/1\.jpg\\x00' is no name of a file"):
        labels_of(write_csv(folder / "table.csv", [("images/1.jpg\0", 1)]))
    with pytest.raises(DataError, match=r"data/images is no file"):
        labels_of(write_csv(folder / "table.csv", [("images", 1)]))
    (folder / "table.csv").write_bytes(b"path,label\n\xff\xfe,1\n")
    with pytest.raises(DataError, match="not CSV in UTF-8"):
        labels_of(folder / "table.csv")
    (folder / "table.csv").write_bytes(b"")
    with pytest.raises(DataError, match="no column path or image or bytes, but none"):
        labels_of(folder / "table.csv")


def test_a_byte_order_mark_as_spreadsheets_write_it_is_no_part_of_a_name(images: Path) -> None:
    table = images.parent / "table.csv"
    table.write_bytes(b"\xef\xbb\xbfpath,label\r\nimages/1.jpg,5\r\n")
    assert labels_of(table) == ({"images_1": 5}, None)


def test_parquet_of_paths(images: Path) -> None:
    columns = {"path": [f"images/{i}.jpg" for i in range(COUNT)], "label": [f"c{i % 2}" for i in range(COUNT)]}
    labels, classes = labels_of(write_parquet(images.parent / "table.parquet", columns))
    assert labels == {f"images_{i}": i % 2 for i in range(COUNT)}
    assert classes == ("c0", "c1")


@pytest.mark.parametrize("kind", ["plain", "struct"])
def test_parquet_of_bytes_goes_into_shards_by_a_copy_that_is_gone_afterwards(
    kind: str, images: Path, tmp_path: Path
) -> None:
    contents = [(images / f"{i}.jpg").read_bytes() for i in range(COUNT)]
    rows = [{"bytes": data, "path": f"n0_{i}.JPEG"} for i, data in enumerate(contents)]
    folder = tmp_path / "tables"
    for part in (slice(0, 6), slice(6, COUNT)):
        values = rows[part] if kind == "struct" else contents[part]
        write_parquet(folder / f"train-{part.start}.parquet", {"image": values, "label": list(range(COUNT))[part]})
    options = ("--name", "toy", "--num-shards", 3, "--workers", 1)
    output = shards_main("build", folder, tmp_path / "out", *options)
    assert "10 images of 10 classes in 3 shards" in output
    keys = [f"n0_{i}" if kind == "struct" else f"{i:08d}" for i in range(COUNT)]
    assert samples_in(tmp_path / "out") == {
        key: ("png" if i == 3 else "jpg", contents[i], i) for i, key in enumerate(keys)
    }
    before = hashes(tmp_path / "out")
    assert not list((tmp_path / "out").glob(".*.images*"))
    assert not (tmp_path / "out" / "classes.json").exists()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")}
    shards_main("build", f"{folder}/train-*.parquet", tmp_path / "out", *options)  # there is nothing to do
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").glob("*.tar")} == times
    (tmp_path / "out" / "toy-train-00001.tar").unlink()
    shards_main("build", folder, tmp_path / "out", *options)
    assert hashes(tmp_path / "out") == before


def test_class_names_are_found_where_hugging_face_keeps_them(images: Path) -> None:
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    table = pa.table({"image": [jpeg(i) for i in range(4)], "label": [1, 0, 1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    labels, classes = labels_of(write_parquet(images.parent / "t.parquet", table))
    assert list(labels.values()) == [1, 0, 1, 0]
    assert classes == ("cat", "dog")


def test_faults_of_a_parquet_file_are_one_message(images: Path) -> None:
    path = images.parent / "t.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"t\.parquet: not readable as Parquet"):
        labels_of(path)
    with pytest.raises(DataError, match=r"t\.parquet: row 0 has label 0\.5: text or a whole number"):
        labels_of(write_parquet(path, {"image": [jpeg(0), jpeg(1)], "label": [0.5, 1.0]}))
    with pytest.raises(DataError, match=r"row 1 has label None"):
        labels_of(write_parquet(path, {"image": [jpeg(0), jpeg(1)], "label": [1, None]}))
    with pytest.raises(DataError, match="no column path or image or bytes, but picture, label"):
        labels_of(write_parquet(path, {"picture": [jpeg(0)], "label": [1]}))
    with pytest.raises(DataError, match="image is a struct without bytes"):
        labels_of(write_parquet(path, {"image": [{"path": "x"}], "label": [1]}))
    other = write_parquet(path.with_name("u.parquet"), {"image": ["images/1.jpg"], "label": [1]})
    bytes_too = write_parquet(path, {"image": [jpeg(0)], "label": [1]})
    with pytest.raises(DataError, match=r"u\.parquet and 1 more do not all have paths, or all bytes in one column"):
        list_manifest([other, bytes_too], copy_to=images / ".copy")
    with pytest.raises(DataError, match="image is int64: paths, bytes or"):
        labels_of(write_parquet(path, {"image": [1], "label": [1]}))


def test_a_label_that_no_index_can_keep_is_one_message(images: Path) -> None:
    label = pa.array([2**63 + 5], pa.uint64())
    with pytest.raises(DataError, match=r"a label is 9223372036854775813: they go from 0 to 2147483647"):
        labels_of(write_parquet(images.parent / "t.parquet", {"image": [jpeg(0)], "label": label}))


def test_damage_found_while_images_are_copied_is_one_message(images: Path, tmp_path: Path) -> None:
    table = write_parquet(images.parent / "t.parquet", {"image": [jpeg(i) for i in range(COUNT)], "label": [0] * COUNT})
    contents = bytearray(table.read_bytes())
    contents[4:40] = b"\xff" * 36  # the header of the first page of images
    table.write_bytes(contents)
    output = shards_main("build", table, tmp_path / "out", "--num-shards", 1, expected=93)
    assert "t.parquet: not readable as Parquet" in output
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_row_without_bytes_is_a_bad_image(images: Path, tmp_path: Path) -> None:
    table = write_parquet(images.parent / "t.parquet", {"image": [jpeg(0), None, jpeg(2)], "label": [0, 1, 2]})
    output = shards_main("build", table, tmp_path / "out", "--num-shards", 1, "--skip-bad")
    assert "left out of imagenet1k-train-00000.tar: 00000001: not JPEG" in output
    assert len(samples_in(tmp_path / "out")) == 2


def test_without_pyarrow_the_message_names_the_extra(tmp_path: Path) -> None:
    (tmp_path / "hidden" / "pyarrow").mkdir(parents=True)
    (tmp_path / "hidden" / "pyarrow" / "__init__.py").write_text("raise ImportError('not here')")
    (tmp_path / "t.parquet").write_bytes(b"")
    command = ("build", tmp_path / "t.parquet", tmp_path / "out")
    assert "pip install 'effnet[parquet]'" in shards_command(*command, expected=93, PYTHONPATH=str(tmp_path / "hidden"))


def test_tables_are_told_from_other_sources(images: Path, tmp_path: Path) -> None:
    table = write_csv(images.parent / "table.csv", [])
    assert manifest_files(str(table)) == [table]
    assert manifest_files(str(images.parent)) == []
    assert manifest_files(str(tmp_path / "none*")) == []
    (tmp_path / "tables").mkdir()
    for name in ("b.parquet", "a.parquet", "notes.txt"):
        (tmp_path / "tables" / name).touch()
    expected = [tmp_path / "tables" / name for name in ("a.parquet", "b.parquet")]
    assert manifest_files(str(tmp_path / "tables")) == manifest_files(f"{tmp_path}/tables/*") == expected
    with pytest.raises(DataError, match=r"are of different kinds: \.csv, \.parquet"):
        list_manifest([table, expected[0]], copy_to=tmp_path / ".copy")
