"""Bytes to characters: UTF-8 or an error that says where, and nothing that has no shape."""

import pytest

from datamodules.images.decoding import BadSampleError
from datamodules.text.reading import flowing, read_text, wrapped


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ("Größe".encode(), "Größe"),
        (b"\xef\xbb\xbfwith a mark", "with a mark"),
        ("Gro\u0308ße".encode(), "Größe"),
        ("a\u200bb\u00adc\x07d\u202ee".encode(), "abcde"),
        (b"a\tb\r\nc", "a\tb\r\nc"),
        ("文字".encode(), "文字"),
    ],
)
def test_texts_are_utf_8_in_composed_characters_that_can_be_seen(contents: bytes, text: str) -> None:
    assert read_text(contents) == text


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ("Größe".encode("latin-1"), r"not UTF-8: b'\\xf6\\xdfe' at byte 2"),
        (b"", "no text in it"),
        (b" \n\t", "no text in it"),
        ("\u200b\ufeff".encode(), "no text in it"),
    ],
)
def test_what_cannot_be_read_is_a_bad_sample_that_says_why(contents: bytes, reason: str) -> None:
    with pytest.raises(BadSampleError, match=reason):
        read_text(contents)


def test_words_flow_with_a_space_between_them() -> None:
    assert flowing("  if x:\n\n\treturn  1\r\n") == "if x: return 1"


def test_lines_keep_their_indentation_and_long_ones_go_on() -> None:
    assert wrapped("if x:\n\treturn 1234\n\nend  \n", 8) == ["if x:", "    retu", "rn 1234", "", "end"]
