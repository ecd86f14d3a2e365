"""`effnet shards` on texts: the index, what is bad, figures and how they look."""

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage

from datamodules.indexing.index_files import index_file, load_index
from datamodules.inspecting.verify import verify
from datamodules.making.shards import write_split
from tests.unit.datamodules.archives import write_tar
from tests.unit.datamodules.sources import shards_main
from tests.unit.texts import passage, text_samples


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_split(text_samples(9), tmp_path, name="texts", split="train", num_shards=2, seed=0)
    return tmp_path


def test_the_index_is_made_for_texts_when_asked_for(folder: Path) -> None:
    shards = sorted(folder.glob("*.tar"))
    assert "none of jpg, jpeg, png, webp" in shards_main("index", folder, expected=93)
    assert "9 samples in 2 shards" in shards_main("index", folder, "--modality", "text")
    index = load_index(shards, index_file(shards, None, "text"), "text")
    assert index is not None
    assert (len(index), index.modality) == (9, "text")


def test_figures_are_those_of_texts_and_the_sheet_shows_them(folder: Path) -> None:
    sheet = folder / "sheet.png"
    output = shards_main("info", folder, "--modality", "text", "--contact-sheet", sheet)
    lengths = sorted(len(passage(i)) for i in range(9))
    assert re.search(rf"^characters \(9 texts\) +{lengths[0]} .* {lengths[-1]}$", output, re.MULTILINE)
    assert re.search(r"^lines +1 +1 +1 +1 +1$", output, re.MULTILINE)
    assert re.search(rf"^bytes of a text +{lengths[0]} .* {lengths[-1]}$", output, re.MULTILINE)
    assert "formats: ASCII 100.0%" in output
    with PilImage.open(sheet) as page:
        dark = np.asarray(page.convert("L")) < 20
    assert dark.mean() > 0.15  # nine black squares


def test_what_is_bad_is_named_with_its_reason(tmp_path: Path) -> None:
    members = [("a.txt", b"\xff"), ("a.cls", b"0"), ("b.txt", b" "), ("b.cls", b"0"), ("c.png", b"x"), ("c.cls", b"0")]
    shard = write_tar(tmp_path / "t-0.tar", [*members, ("d.txt", b"good"), ("d.cls", b"0")])
    samples, bad = verify([shard], num_classes=1, modality="text")
    assert samples == 4
    assert [(each.key, each.reason) for each in bad] == [
        ("a", "txt: not UTF-8: b'\\xff' at byte 0"),
        ("b", "txt: no text in it"),
        ("c", "has png, cls, none of txt"),
    ]
    assert "a: txt: not UTF-8" in shards_main("verify", shard, "--modality", "text", expected=93)
