"""How far a run is, by metrics.csv, at a glance: of a large file only the rows of validations, and a few others."""

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

from configs.run import RunDirectory

BEST = ("val/ema_top1", "val/top1")
"""Metrics by which a run is judged, the first of which is there."""
LOSS, SPEED, STEP = "train/loss", "throughput/images_per_second", "step"
_PROBES = 64
"""Places of the file at which a row is read where no validation is in it."""
_TAIL_BYTES = 1 << 16
_BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, by metrics.csv.

    Attributes:
        step: Optimizer steps done.
        images_per_second: As last measured.
        best: Name and largest value of the metric that counts, or None before the first validation.
        curve: That metric's values, in order; before the first validation some of the training loss's.
    """

    step: int
    images_per_second: float | None
    best: tuple[str, float] | None
    curve: Sequence[float] = ()


def progress(run: RunDirectory) -> Progress:
    """Read metrics.csv, which may be written to meanwhile: whole lines alone."""
    try:
        with run.metrics_file.open("rb") as file:
            return _read(file)
    except OSError:
        return Progress(step=0, images_per_second=None, best=None)


def sparkline(values: Sequence[float], width: int) -> str:
    """So many characters at most, each the mean of as many values, between the smallest and the largest of them."""
    finite = [value for value in values if math.isfinite(value)]
    count = min(width, len(finite))
    parts = [finite[place * len(finite) // count : (place + 1) * len(finite) // count] for place in range(count)]
    means = [sum(part) / len(part) for part in parts]
    if not means:
        return ""
    low, high = min(means), max(means)
    reach = (high - low) or 1.0
    return "".join(_BLOCKS[round((len(_BLOCKS) - 1) * (mean - low) / reach)] for mean in means)


def _read(file: BinaryIO) -> Progress:
    header = file.readline()
    names = header.decode("utf-8", "replace").strip().split(",")
    rows = _Rows(names)
    validations = list(rows.of_validations(file, header))
    tail = list(rows.parsed(_tail(file, len(header))))
    speeds = [row[SPEED] for row in tail if SPEED in row]
    judged = next((name for name in BEST if any(name in row for row in validations)), None)
    if judged is None:
        curve = [row[LOSS] for row in rows.parsed(_probes(file, len(header))) if LOSS in row]
    else:
        curve = [row[judged] for row in validations if judged in row]
    best = max((value for value in curve if math.isfinite(value)), default=math.nan)
    return Progress(
        step=int(max((row[STEP] for row in tail + validations if STEP in row), default=0)),
        images_per_second=speeds[-1] if speeds else None,
        best=None if judged is None or math.isnan(best) else (judged, best),
        curve=curve,
    )


class _Rows:
    """Rows of a file, by the places of the few columns that count."""

    def __init__(self, names: Sequence[str]) -> None:
        self._count = len(names)
        self._places = {names.index(name): name for name in (STEP, SPEED, LOSS, *BEST) if name in names}
        # Columns stand in the order of their names, those of validation last: most rows are told by how they end.
        last = next((place for place in range(self._count, 0, -1) if not names[place - 1].startswith("val/")), 0)
        self._without = b"," * (self._count - last)

    def of_validations(self, file: BinaryIO, header: bytes) -> Iterable[dict[str, float]]:
        if not set(BEST) & set(self._places.values()):
            return ()
        end = self._without + (b"\r\n" if header.endswith(b"\r\n") else b"\n")
        found = self.parsed(line for line in file if not (self._without and line.endswith(end)))
        return (row for row in found if any(name in row for name in BEST))

    def parsed(self, lines: Iterable[bytes]) -> Iterable[dict[str, float]]:
        """Those of whole lines, without what is no number."""
        for line in lines:
            cells = line.strip().split(b",")
            if line.endswith(b"\n") and len(cells) == self._count:
                values = {name: _number(cells[place]) for place, name in self._places.items()}
                row = {name: value for name, value in values.items() if value is not None}
                if math.isfinite(row.get(STEP, math.nan)):
                    yield row


def _tail(file: BinaryIO, first: int) -> Iterable[bytes]:
    """The last lines."""
    size = file.seek(0, os.SEEK_END)
    start = file.seek(max(first, size - _TAIL_BYTES))
    if start > first:
        file.readline()
    return file.readlines()


def _probes(file: BinaryIO, first: int) -> Iterable[bytes]:
    """A line at each of some places, in order, none twice."""
    size, at = file.seek(0, os.SEEK_END), -1
    for number in range(_PROBES):
        place = first + number * (size - first) // _PROBES
        file.seek(place)
        if place > first:
            file.readline()
        begins = file.tell()
        line = file.readline()
        if begins > at:
            at = begins
            yield line


def _number(text: bytes) -> float | None:
    try:
        return float(text) if text else None
    except ValueError:
        return None
