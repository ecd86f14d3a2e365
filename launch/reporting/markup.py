"""HTML and SVG as nested elements: what is not markup already is escaped, so that no name or message becomes any."""

import html
import re
from collections.abc import Iterable

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
"""What may not stand in a page, not even escaped."""
VOID = frozenset({"meta", "link"})
"""Elements that have no end."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(content: object) -> Markup:
    """Text as it is to be read: escaped, without what UTF-8 or HTML cannot hold; markup as it is."""
    if isinstance(content, Markup):
        return content
    text = str(content).encode("utf-8", "replace").decode("utf-8")
    return Markup(html.escape(CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)))


def tag(element: str, *content: object, **attributes: object) -> Markup:
    """An element.

    Args:
        element: Its name.
        content: What is in it, one after the other.
        attributes: A last ``_`` is dropped (``class_``), others stand for hyphens. None leaves one out.
    """
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escaped(value)}"'
        for name, value in attributes.items()
        if value is not None
    )
    if element in VOID:
        return Markup(f"<{element}{given}>")
    return Markup(f"<{element}{given}>{joined(content)}</{element}>")


def joined(parts: Iterable[object]) -> Markup:
    """Parts one after the other."""
    return Markup("".join(map(escaped, parts)))
