"""``effnet predict``: the answers of a run's network, from every kind of input to every kind of file."""

import csv
import json
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from configs.problems import DataError
from configs.run import RunDirectory
from tests.conftest import picture
from tests.unit.trainer.runs import predicted
from trainer.checkpoint_files import read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.predicting import answers, command
from trainer.predicting.tally import Tally


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder with two images, one in a folder of its own, and a damaged one."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    (folder / "a.png").write_bytes(picture(5))
    (folder / "b.png").write_bytes(picture(6)[:200])
    (folder / "more" / "c.JPG").write_bytes(picture(7, file_format="JPEG"))
    (folder / "notes.txt").write_text("no image")
    return folder


@pytest.mark.parametrize(("raw", "name"), [(True, "val/top1"), (False, "val/ema_top1")], ids=["raw", "ema"])
def test_validation_shards_get_the_top1_of_validation(
    raw: bool, name: str, trained: RunDirectory, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "answers.jsonl"
    printed = predicted(trained, tmp_path, f"{shards}/toy-validation-*.tar", out=out, raw=raw)

    expected = read_manifest(CheckpointDirectory(trained.checkpoints).chosen(None))["metrics"][name]
    found = lines(out)
    assert len(found) == 37
    right = [line["predictions"][0]["label"] == line["label"] for line in found]
    assert np.mean(right) == pytest.approx(expected, abs=1e-6)
    assert f"top-1 {expected:.4f} of 37 with a label" in printed
    with tarfile.open(sorted(shards.glob("toy-validation-*.tar"))[0]) as shard:
        assert found[0]["image"].endswith(shard.getnames()[0].partition(".")[0])


def test_a_folder_is_searched_and_a_bad_image_named_and_skipped(
    trained: RunDirectory, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "answers.jsonl"
    printed = predicted(trained, tmp_path, images, images / "absent.png", out=out)

    a, b, c, absent = lines(out)
    assert [Path(line["image"]).name for line in (a, b, c, absent)] == ["a.png", "b.png", "c.JPG", "absent.png"]
    assert "not a readable image" in b["error"]
    assert absent["error"] == "No such file or directory"
    assert "2 images, 2 bad" in printed
    assert f"{images}/b.png is skipped" in caplog.text
    for line in (a, c):
        shares = [each["probability"] for each in line["predictions"]]
        assert len(shares) == 2
        assert 1 >= shares[0] >= shares[1] >= 0
    assert "label" not in a


def test_globs_and_lists_are_read(trained: RunDirectory, images: Path, tmp_path: Path) -> None:
    strange = images / "list [1].png"
    strange.write_bytes(picture(9))
    out = tmp_path / "answers.jsonl"
    predicted(trained, tmp_path, f"{images}/**/[ac].*", listed=(str(strange),), out=out)

    assert [Path(line["image"]).name for line in lines(out)] == ["a.png", "c.JPG", "list [1].png"]


def test_an_image_is_answered_alike_in_any_batch_and_any_worker(
    trained: RunDirectory, shards: Path, tmp_path: Path
) -> None:
    first, second = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    predicted(trained, tmp_path, shards / "toy-validation-00000.tar", out=first, batch_size=3)
    predicted(trained, tmp_path, shards / "toy-validation-00000.tar", out=second)

    for one, other in zip(lines(first), lines(second), strict=True):
        assert one["image"] == other["image"]
        shares = [[each["probability"] for each in line["predictions"]] for line in (one, other)]
        assert shares[0] == pytest.approx(shares[1], abs=1e-5)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables_have_what_json_lines_have(suffix: str, trained: RunDirectory, images: Path, tmp_path: Path) -> None:
    table, other = tmp_path / f"answers{suffix}", tmp_path / "answers.jsonl"
    predicted(trained, tmp_path, images, out=table)
    predicted(trained, tmp_path, images, out=other)

    rows: list[dict[str, Any]]
    if suffix == ".csv":
        with table.open(newline="") as file:
            rows = [{name: value or None for name, value in row.items()} for row in csv.DictReader(file)]
    else:
        rows = pq.read_table(table).to_pylist()
    assert len(rows) == 3
    for row, line in zip(rows, lines(other), strict=True):
        assert row["image"] == line["image"]
        assert row["error"] == line.get("error")
        for place, each in enumerate(line.get("predictions", ()), start=1):
            assert int(row[f"label_{place}"]) == each["label"]
            assert float(row[f"probability_{place}"]) == pytest.approx(each["probability"])


@pytest.mark.parametrize("suffix", [".jsonl", ".csv", ".parquet"])
def test_answers_are_written_as_they_come_and_kept_nowhere(
    suffix: str, trained: RunDirectory, shards: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = [images, f"{shards}/toy-validation-*.tar"]
    whole, parts = tmp_path / f"whole{suffix}", tmp_path / f"parts{suffix}"
    predicted(trained, tmp_path, *inputs, out=whole, batch_size=4)

    sizes: list[int] = []
    made = answers.WRITERS[suffix]

    @contextmanager
    def counting(*given: Any) -> Iterator[answers.Write]:
        with made(*given) as write:

            def counted(some: Iterable[answers.Answer]) -> None:
                some = list(some)
                sizes.append(len(some))
                write(some)

            yield counted

    monkeypatch.setitem(answers.WRITERS, suffix, counting)
    monkeypatch.setattr(command, "TURNS", 2)
    monkeypatch.setattr(answers, "ROWS_OF_A_GROUP", 16)
    predicted(trained, tmp_path, *inputs, out=parts, batch_size=4)

    assert sizes == [8, 8, 8, 8, 8]
    if suffix == ".parquet":
        assert pq.read_table(parts) == pq.read_table(whole)
        assert pq.ParquetFile(parts).num_row_groups == 3
    else:
        assert parts.read_bytes() == whole.read_bytes()


def test_what_cannot_be_predicted_to_the_end_leaves_no_file(
    trained: RunDirectory, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Tally, some: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Tally, "add", fail)
    folder = tmp_path / "out"
    with pytest.raises(OSError, match="no space"):
        predicted(trained, tmp_path, f"{shards}/toy-validation-*.tar", out=folder / "answers.csv")
    assert not list(folder.iterdir())


def test_a_tally_keeps_the_first_and_some_over_all_images() -> None:
    def answer(number: int) -> answers.Answer:
        error = "bad" if number in (0, 50, 99) else None
        label = None if number % 2 else number % 4
        return answers.Answer(number, f"{number}.png", label, () if error else (0,), () if error else (1.0,), error)

    tally = Tally(100, first=3, sheet=4)
    for first in range(0, 100, 10):
        tally.add(answer(number) for number in range(first, first + 10))

    assert (tally.good, tally.bad, tally.first_error) == (97, 3, "bad")
    assert [each.number for each in tally.first] == [1, 2, 3]
    assert [each.number for each in tally.sheet] == [1, 25, 51, 75]
    assert tally.summary(2.0) == "97 images, 3 bad, 50 images/s, top-1 0.5000 of 48 with a label"


def test_a_contact_sheet_shows_the_images(trained: RunDirectory, shards: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheets" / "sheet.png"
    predicted(trained, tmp_path, f"{shards}/toy-validation-*.tar", contact_sheet=sheet)

    with Image.open(sheet) as page:
        assert page.width == 1680
        assert len(np.unique(np.asarray(page.convert("L")))) > 200


def test_answers_are_printed_where_no_file_takes_them(trained: RunDirectory, images: Path, tmp_path: Path) -> None:
    printed = predicted(trained, tmp_path, images / "a.png", top_k=9).splitlines()

    assert printed[0].startswith(f"{images}/a.png: ")
    assert printed[0].count("%") == 4  # all classes that there are
    assert printed[-1].startswith("ema weights of step 17: 1 images, 0 bad, ")


def test_mistakes_are_named(
    trained: RunDirectory, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match=r"none of 1 images can be read; the first: .*not a readable image"):
        predicted(trained, tmp_path, images / "b.png")
    with pytest.raises(DataError, match="matches no file"):
        predicted(trained, tmp_path, f"{images}/*.webp")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image and no shard is in this folder"):
        predicted(trained, tmp_path, tmp_path / "empty")
    with pytest.raises(DataError, match="there is nothing to predict"):
        predicted(trained, tmp_path)
    with pytest.raises(DataError, match=r"its suffix is none of \.csv, \.jsonl, \.parquet"):
        predicted(trained, tmp_path, images, out=tmp_path / "answers.xml")
    monkeypatch.setattr(answers, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"pip install 'effnet\[parquet\]'"):
        predicted(trained, tmp_path, images, out=tmp_path / "answers.parquet")
