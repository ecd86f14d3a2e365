"""The section of single predictions: the worst and the best of the last validation, each with its picture inside."""

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.reporting.markup import Markup, joined, tag
from launch.reporting.record import Record
from launch.reporting.wording import number, size

KINDS = (
    ("worst", "Worst", "Those of highest loss: mistakes that the network was sure of, and labels that may be wrong."),
    ("best", "Best", "Those of lowest loss."),
)
WEIGHTS = {"raw": "the raw", "ema": "the averaged"}
FORMATS = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg"}
"""Of pictures that are shown, by how their files begin."""
MOST_BYTES, LARGEST = 3_000_000, 200_000
"""Of all pictures of a page together, and of one. What is beyond is told in words alone."""
MOST = 50
"""Predictions of a kind that are shown."""


def predictions_section(record: Record) -> Markup | None:
    """A gallery of each kind, of the last result that has some; None without."""
    found = record.validation
    listed = found.get("results")
    results = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    chosen = next((each for each in results[::-1] if any(_entries(each, kind) for kind, *_ in KINDS)), None)
    if chosen is None:
        return None
    parts: list[Markup] = []
    room = MOST_BYTES
    for kind, title, note in KINDS:
        cards = []
        for entry in _entries(chosen, kind)[:MOST]:
            picture = _picture(record.run.path, entry.get("picture"), most=min(room, LARGEST))
            room -= len(picture[1]) if picture is not None else 0
            cards.append(_card(entry, picture, found.get("class_names")))
        if cards:
            parts += [tag("h3", title), tag("p", note, class_="note"), tag("div", *cards, class_="gallery")]
    weights = WEIGHTS.get(str(chosen.get("weights")), "the")
    said = f"As the network sees them, of {weights} weights"
    cut = [f"{chosen['image_size']} pixels"] if isinstance(chosen.get("image_size"), int) else []
    if room < LARGEST:
        cut.append(f"pictures up to {size(MOST_BYTES)} together")
    return joined([tag("p", ", ".join([said, *cut]) + ".", class_="note"), *parts])


def _entries(result: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    listed = result.get(kind)
    return [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []


def _card(entry: Mapping[str, Any], picture: tuple[str, bytes] | None, names: Any) -> Markup:
    label, predicted = (class_name(entry.get(key), names) for key in ("label", "predicted"))
    right = entry.get("label") == entry.get("predicted")
    sure, own = (_share(entry.get(key)) for key in ("confidence", "label_probability"))
    said = f"{label}, rightly, with {sure}" if right else f"{label}, taken for {predicted} with {sure}"
    shown: object = tag("div", "no picture", class_="missing")
    if picture is not None:
        kind, contents = picture
        source = f"data:image/{kind};base64,{base64.b64encode(contents).decode()}"
        shown = tag("img", src=Markup(source), alt=said)
    lines = [tag("b", label)]
    lines.append(tag("span", f"\N{CHECK MARK} {sure}" if right else f"\N{RIGHTWARDS ARROW} {predicted}, {sure}"))
    if not right:
        lines.append(tag("small", f"{label}: {own}"))
    key = entry.get("key") if isinstance(entry.get("key"), str) else f"sample {entry.get('sample')}"
    shard = str(entry.get("shard") or "").rpartition("/")[2]
    lines += [tag("small", each) for each in (key, shard) if each]
    caption = tag("figcaption", *lines)
    return tag("figure", shown, caption, class_="right" if right else "wrong")


def _picture(folder: Path, where: Any, *, most: int) -> tuple[str, bytes] | None:
    """Format and bytes of a file below the run's folder; None where there is none that can be shown."""
    if not isinstance(where, str):
        return None
    try:
        path = (folder / where).resolve()
        if not path.is_relative_to(folder.resolve()) or not path.is_file() or path.stat().st_size > most:
            return None
        contents = path.read_bytes()
    except (OSError, ValueError):
        return None
    kind = next((kind for start, kind in FORMATS.items() if contents.startswith(start)), None)
    return (kind, contents) if kind is not None else None


def _share(value: Any) -> str:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return number(float(value), percent=True) if usable else number(None)


def class_name(label: Any, names: Any) -> str:
    """A class's name where it has one, else its number."""
    known = isinstance(names, list) and isinstance(label, int) and 0 <= label < len(names)
    return str(names[label]) if known else str(label)
