"""A confusion matrix as SVG, read without numpy from the file that ``effnet validate`` leaves."""

import ast
import sys
import zipfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from launch.reporting.markup import Markup, tag

MOST_CLASSES = 40
"""Classes up to which a matrix is drawn: cells of more would be too small."""
MAGIC, LENGTHS = b"\x93NUMPY", {1: 2, 2: 4, 3: 4}
"""How an array begins; by the format's version, bytes of the header's length (numpy's ``lib/format.py``)."""
WIDEST_HEADER = 10_000
SIDE, LABELS = 420.0, 100.0
"""Of the cells together, and the room for names left of them, in units of the drawing."""
LONGEST_NAME = 14


def read_matrix(folder: Path, where: str) -> list["array[int]"] | None:
    """Rows of a matrix of int64, by label; None where there is none that can be drawn.

    Args:
        folder: Of the run; nothing outside of it is read.
        where: ``FILE.npz:NAME``, the file below that folder.
    """
    file, _, name = where.rpartition(":")
    path = (folder / file).resolve()
    if not path.is_relative_to(folder.resolve()):
        return None
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            return _read_array(member)
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, SyntaxError, TypeError, EOFError, RuntimeError):
        return None


def _read_array(member: IO[bytes]) -> list["array[int]"] | None:
    start = member.read(8)
    if start[:6] != MAGIC or start[6] not in LENGTHS:
        return None
    length = int.from_bytes(member.read(LENGTHS[start[6]]), "little")
    if length > WIDEST_HEADER:
        return None
    header = ast.literal_eval(member.read(length).decode("latin-1"))
    count, columns = header["shape"]
    if header["descr"] != "<i8" or header["fortran_order"] or count != columns or not 0 < count <= MOST_CLASSES:
        return None
    cells = array("q")
    cells.frombytes(member.read(8 * count * count))
    if sys.byteorder == "big":
        cells.byteswap()
    return [cells[row * count : (row + 1) * count] for row in range(count)] if len(cells) == count * count else None


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


def _short(name: str) -> str:
    return name if len(name) <= LONGEST_NAME else name[: LONGEST_NAME - 1] + "\N{HORIZONTAL ELLIPSIS}"
