"""Small files: replaced whole, and read where they are there."""

from pathlib import Path

import pytest

from configs.files import read_json, write_atomically


def test_an_atomic_write_replaces_the_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "old")
    write_atomically(file, "né")

    assert file.read_bytes() == "né".encode()
    assert list(tmp_path.iterdir()) == [file]


def test_an_atomic_write_that_fails_keeps_the_old_file_and_leaves_no_other(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomically(file, "old")

    with pytest.raises(UnicodeEncodeError):
        write_atomically(file, "new \udcff")

    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("content", [None, b"", b"{", b"[1]", b"\xff", b"[" * 100_000])
def test_what_is_no_mapping_is_read_as_an_empty_one(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "a.json").write_bytes(content)
    assert read_json(tmp_path / "a.json") == {}


def test_a_mapping_is_read(tmp_path: Path) -> None:
    write_atomically(tmp_path / "a.json", '{"a": [1]}')
    assert read_json(tmp_path / "a.json") == {"a": [1]}
