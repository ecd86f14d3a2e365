"""A confusion matrix as SVG, read without numpy from the file that a validation leaves."""

import ast
import math
import sys
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, NamedTuple, TypeVar

from launch.reporting.markup import Markup, tag

MOST_CLASSES = 40
"""Classes up to which each cell is drawn: those of more would be too small."""
MOST_BLOCKS = 125
"""Squares in a row where there are more classes; each stands for several of these."""
LARGEST = 30_000
"""Classes of the largest matrix that is read, a row at a time."""
LEVELS = 12
"""Strengths that squares have."""
MAGIC, LENGTHS = b"\x93NUMPY", {1: 2, 2: 4, 3: 4}
"""How an array begins; by the format's version, bytes of the header's length (numpy's ``lib/format.py``)."""
WIDEST_HEADER = 10_000
SIDE, LABELS = 420.0, 100.0
"""Of the cells together, and the room for names left of them, in units of the drawing."""
LONGEST_NAME = 14
Result = TypeVar("Result")


class Blocks(NamedTuple):
    """A matrix of many classes, in squares of several each.

    Attributes:
        classes: In all.
        width: Classes of a square.
        strengths: By row and column, 0 to 1: on the diagonal the mean accuracy of the classes; elsewhere the largest
            share of a label's samples that is taken for one class.
    """

    classes: int
    width: int
    strengths: list[list[float]]


def read_matrix(folder: Path, where: str) -> list["array[int]"] | None:
    """Rows of a matrix of int64, by label; None where there is none of so few classes that each cell can be drawn.

    Args:
        folder: Of the run; nothing outside of it is read.
        where: ``FILE.npz:NAME``, the file below that folder.
    """
    return _read(folder, where, lambda rows, count: list(rows) if count <= MOST_CLASSES else None)


def read_blocks(folder: Path, where: str) -> Blocks | None:
    """The same of a matrix of more classes; None where there is none."""
    return _read(folder, where, lambda rows, count: _blocks(rows, count) if count > MOST_CLASSES else None)


def _read(folder: Path, where: str, use: Callable[[Iterator["array[int]"], int], Result | None]) -> Result | None:
    file, _, name = where.rpartition(":")
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            count = _read_header(member)
            return use(_rows(member, count), count) if count is not None else None
    except (
        OSError,
        zipfile.BadZipFile,
        KeyError,
        ValueError,
        SyntaxError,
        TypeError,
        EOFError,
        RuntimeError,
        zlib.error,
    ):
        return None


def _read_header(member: IO[bytes]) -> int | None:
    """The number of rows and columns; None for another kind of array."""
    start = member.read(8)
    if start[:6] != MAGIC or start[6] not in LENGTHS:
        return None
    length = int.from_bytes(member.read(LENGTHS[start[6]]), "little")
    if length > WIDEST_HEADER:
        return None
    header = ast.literal_eval(member.read(length).decode("latin-1"))
    count, columns = header["shape"]
    if header["descr"] != "<i8" or header["fortran_order"] or count != columns or not 0 < count <= LARGEST:
        return None
    return int(count)


def _rows(member: IO[bytes], count: int) -> Iterator["array[int]"]:
    """Row by row.

    Raises:
        EOFError: If the file ends before the last one does.
    """
    for _ in range(count):
        contents = member.read(8 * count)
        if len(contents) < 8 * count:
            raise EOFError
        cells = array("q")
        cells.frombytes(contents)
        if sys.byteorder == "big":
            cells.byteswap()
        yield cells


def _blocks(rows: Iterator["array[int]"], count: int) -> Blocks:
    width = -(-count // MOST_BLOCKS)
    starts = range(0, count, width)
    strengths = [[0.0] * len(starts) for _ in starts]
    right, counted = [0.0] * len(starts), [0] * len(starts)
    for label, row in enumerate(rows):
        total, place = sum(row), label // width
        if total <= 0:
            continue
        right[place] += row[label] / total
        counted[place] += 1
        found = strengths[place]
        for column, start in enumerate(starts):
            most = max(row[start : start + width])
            if most > 0:
                found[column] = max(found[column], most / total)
    for place, classes in enumerate(counted):
        strengths[place][place] = right[place] / max(classes, 1)
    return Blocks(count, width, strengths)


def draw_matrix(rows: Sequence[Sequence[int]], names: Sequence[str]) -> Markup:
    """Labels downwards, what they were taken for to the right; as strong as the share of the label's samples."""
    cell = SIDE / len(rows)
    parts = []
    for label, row in enumerate(rows):
        total, y = sum(row) or 1, label * cell
        parts.append(tag("text", _short(names[label]), x=LABELS - 8, y=f"{y + cell / 2 + 4:.1f}", text_anchor="end"))
        for predicted, count in enumerate(row):
            said = f"{names[label]}, taken for {names[predicted]}: {count:,} of {sum(row):,}"
            strength = f"{0.12 + 0.88 * count / total:.2f}" if count else "0"
            box = {"x": f"{LABELS + predicted * cell:.1f}", "y": f"{y:.1f}", "width": f"{cell - 1:.1f}"}
            style = "right" if predicted == label else "wrong"
            rect = tag("rect", tag("title", said), **box, height=f"{cell - 1:.1f}", fill_opacity=strength, class_=style)
            parts.append(rect)
    frame = tag("rect", x=LABELS - 1, y=-1, width=SIDE + 1, height=SIDE + 1, class_="frame")
    view = f"0 -2 {LABELS + SIDE + 2:g} {SIDE + 4:g}"
    return tag("svg", frame, *parts, viewBox=view, role="img", aria_label="Confusion matrix", class_="matrix")


def draw_blocks(blocks: Blocks) -> Markup:
    """As `draw_matrix`, in squares: one path for all that are as strong as each other."""
    paths: dict[tuple[str, int], list[str]] = {}
    for row, strengths in enumerate(blocks.strengths):
        for column, strength in enumerate(strengths):
            shown = min(strength, 1.0) if row == column else math.sqrt(min(strength, 1.0))
            level = math.ceil(shown * LEVELS)
            if level > 0:
                style = "right" if row == column else "wrong"
                paths.setdefault((style, level), []).append(f"M{column} {row}h1v1h-1z")
    drawn = [
        tag("path", d="".join(parts), fill_opacity=f"{level / LEVELS:.2f}", class_=style)
        for (style, level), parts in sorted(paths.items())
    ]
    side = len(blocks.strengths)
    frame = tag("rect", x=0, y=0, width=side, height=side, class_="frame", vector_effect="non-scaling-stroke")
    label = f"Confusion matrix of {blocks.classes:,} classes"
    return tag("svg", frame, *drawn, viewBox=f"0 0 {side} {side}", role="img", aria_label=label, class_="matrix blocks")


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
