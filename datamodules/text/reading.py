"""From the bytes of a text to characters that can be drawn."""

import re
import unicodedata
from collections.abc import Sequence

from datamodules.images.decoding import BadSampleError

TAB = 4
"""Columns from one tab stop to the next."""
_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
"""Characters that control devices, the direction of writing or the ends of words, and have no shape."""


def read_text(contents: bytes) -> str:
    """Decode UTF-8, with or without a byte order mark: composed characters (NFC), none of them invisible.

    Raises:
        BadSampleError: If it is not UTF-8, or nothing of it is to be seen.
    """
    try:
        text = contents.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadSampleError(f"not UTF-8: {contents[error.start : error.start + 8]!r} at byte {error.start}") from None
    text = _INVISIBLE.sub("", unicodedata.normalize("NFC", text))
    if not text or text.isspace():
        raise BadSampleError("no text in it")
    return text


def flowing(text: str) -> str:
    """The words of a text, a space between any two of them."""
    return " ".join(text.split())


def wrapped(text: str, columns: int) -> Sequence[str]:
    """The lines of a text, with their indentation; those that are longer than ``columns`` go on in the next."""
    lines = [line.expandtabs(TAB).rstrip() for line in text.splitlines()]
    return [line[at : at + columns] for line in lines for at in range(0, max(len(line), 1), columns)]
