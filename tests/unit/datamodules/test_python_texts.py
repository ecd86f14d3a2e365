"""Texts of Python's own: kinds told apart, splits that share nothing, shards that are the same each time."""

import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest

from datamodules.making.shards import is_built
from datamodules.python_texts import KINDS, LONG_LINE, LONGEST, SHORTEST, build, kinds_of, passages
from tests.unit.datamodules.sources import shards_main

SOURCE = '''#!/usr/bin/env python
# Copyright someone
"""The module.

    Indented.
"""

import os  # not a comment of its own


class Thing:
    r"""A thing."""

    # ------
    #   About the value:
    #   it is one
    value = "# not a comment"

    async def method(self):
        """Do it"""; return 1

text = """no docstring"""
'''


def test_kinds_are_told_apart() -> None:
    assert kinds_of(SOURCE) == {
        "code": "import os\nclass Thing:\n"
        '    value = "# not a comment"\n    async def method(self):\ntext = """no docstring"""',
        "comment": "!/usr/bin/env python\nCopyright someone\n  About the value:\n  it is one",
        "docstring": "The module.\n\nIndented.\n\nA thing.\n\nDo it",
    }


def test_passages_are_whole_lines_and_leave_out_what_is_short() -> None:
    text = "\n".join(f"{i:03d} {'x' * 60}" for i in range(25))
    found = list(passages(text))
    assert "".join(found) == "".join(f"{line}\n" for line in text.splitlines()[: sum(map(str.count, found, "\n" * 9))])
    assert all(SHORTEST <= len(each) <= LONGEST for each in found)
    assert list(passages("short\n" * 3)) == []
    assert [len(each) for each in passages("y" * 1500)] == [LONGEST, LONGEST]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    build(folder)
    return folder


def contents(folder: Path, split: str) -> list[tuple[str, int]]:
    texts, labels = [], []
    for path in sorted(folder.glob(f"python-texts-{split}-*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member)
                assert file is not None
                (texts if member.name.endswith(".txt") else labels).append(file.read())
    return [(text.decode(), int(label)) for text, label in zip(texts, labels, strict=True)]


def test_splits_have_all_kinds_in_equal_parts_and_no_long_line_in_common(built: Path) -> None:
    training, validation = contents(built, "train"), contents(built, "validation")

    assert json.loads((built / "classes.json").read_text()) == list(KINDS)
    for found, most in ((training, 600), (validation, 120)):
        counts = Counter(label for _, label in found)
        assert set(counts) == {0, 1, 2, 3}
        assert max(counts.values()) == most
        assert min(counts.values()) >= 0.8 * most
    lines = [
        {line.strip() for text, _ in found for line in text.splitlines() if len(line.strip()) >= LONG_LINE}
        for found in (training, validation)
    ]
    assert all(len(each) > 1000 for each in lines)
    assert not lines[0] & lines[1]


def test_the_command_makes_the_same_shards_once(built: Path, tmp_path: Path) -> None:
    assert is_built(built)
    assert not is_built(tmp_path)
    shards_main("python-texts", tmp_path)
    for path in sorted(built.glob("*.tar")):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()
    times = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.tar"))]
    shards_main("python-texts", tmp_path)
    assert [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*.tar"))] == times
