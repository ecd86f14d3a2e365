"""HTML and SVG as nested elements: what is not markup already is escaped, so that no name or message becomes any."""

import html
import re
from collections.abc import Iterable

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffe\uffff]")
"""What may not stand in a page, not even escaped."""
SECRET = re.compile(
    r"(://)[^/@\s]+(?=@)|([?&](?:sig|[\w.-]{0,64}(?:key|token|secret|passw|credential|signature)[\w.-]{0,64})=)[^&\s\"'<>]+",
    re.IGNORECASE,
)
"""Of a URL, as an error may name it where a store has sent on to one that is signed: pages are passed on to others."""
VOID = frozenset({"meta", "link", "img"})
"""Elements that have no end."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def escaped(content: object) -> Markup:
    """Text as it is to be read: escaped, without what UTF-8 or HTML cannot hold, and URLs' secrets; markup as it is."""
    if isinstance(content, Markup):
        return content
    text = str(content).encode("utf-8", "replace").decode("utf-8")
    text = SECRET.sub("\\1\\2\N{HORIZONTAL ELLIPSIS}", CONTROL.sub("\N{REPLACEMENT CHARACTER}", text))
    return Markup(html.escape(text))


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
