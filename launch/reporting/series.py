"""The columns of metrics.csv, in one pass and without the rest of it, and fewer points of them for a drawing."""

import csv
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

STEP, EPOCH, ATTEMPT = "step", "epoch", "attempt"
MOST_POINTS = 1000
"""Of a line that is drawn: more than a chart has pixels."""
LONGEST_COUNT = 18
"""Digits of a step: more are of a file that is damaged."""
LARGEST = 1e100
"""Of a number in any format that is trained in, by far: an axis of larger ones would have no length."""


@dataclass
class Column:
    """The values of a metric, and in which rows they stand; NaN and infinity among them."""

    rows: "array[int]" = field(default_factory=lambda: array("q"))
    values: "array[float]" = field(default_factory=lambda: array("d"))


@dataclass
class Metrics:
    """metrics.csv by columns.

    Attributes:
        steps: Of each row, optimizer steps.
        epochs: Of each row, passes over the training samples; NaN where a row does not say.
        attempts: Of each row, the number of the start of the run; -1 where a row does not say.
        columns: All others, by name.
    """

    steps: "array[int]" = field(default_factory=lambda: array("q"))
    epochs: "array[float]" = field(default_factory=lambda: array("d"))
    attempts: "array[int]" = field(default_factory=lambda: array("q"))
    columns: dict[str, Column] = field(default_factory=dict)

    @property
    def has_epochs(self) -> bool:
        """Whether every row has its epoch."""
        return bool(self.epochs) and all(map(math.isfinite, self.epochs))

    def attempt_starts(self) -> list[int]:
        """Rows with which a later attempt than that of the row before begins."""
        pairs = enumerate(zip(self.attempts, self.attempts[1:], strict=False), 1)
        return [row for row, (before, now) in pairs if 0 <= before < now]

    def last(self, name: str) -> float | None:
        """The newest finite value."""
        values = self.columns[name].values if name in self.columns else ()
        return next((value for value in reversed(values) if math.isfinite(value)), None)

    def best(self, name: str) -> tuple[float, int] | None:
        """The largest finite value, and its step."""
        column = self.columns.get(name, Column())
        found = [(value, -row) for row, value in zip(column.rows, column.values, strict=True) if math.isfinite(value)]
        if not found:
            return None
        value, row = max(found)
        return value, self.steps[-row]


def read_metrics(file: Path) -> Metrics:
    """All whole rows of metrics.csv, which may be written to meanwhile; none where there is no such file."""
    metrics = Metrics()
    try:
        with file.open(encoding="utf-8", errors="replace", newline="") as lines:
            # A last line without its end is still being written, and its last number may be half of one.
            _read_rows(csv.reader(line for line in lines if line.endswith("\n")), metrics)
    except (OSError, csv.Error):
        pass  # what was read up to here is worth showing
    return metrics


def _read_rows(rows: Iterator[list[str]], metrics: Metrics) -> None:
    header = next(rows, [])
    if STEP not in header:
        return
    places = {name: place for place, name in enumerate(header)}
    at_step, at_epoch, at_attempt = places[STEP], places.get(EPOCH), places.get(ATTEMPT)
    columns = [(place, Column()) for name, place in places.items() if name not in (STEP, EPOCH, ATTEMPT)]
    metrics.columns = {header[place]: column for place, column in columns}
    for cells in rows:
        if len(cells) != len(header) or not _is_count(cells[at_step]):
            continue
        row = len(metrics.steps)
        metrics.steps.append(int(cells[at_step]))
        metrics.epochs.append(_number(cells[at_epoch]) if at_epoch is not None else math.nan)
        attempt = cells[at_attempt] if at_attempt is not None else ""
        metrics.attempts.append(int(attempt) if _is_count(attempt) else -1)
        for place, column in columns:
            text = cells[place]
            if text:
                column.rows.append(row)
                column.values.append(_number(text))


def _is_count(text: str) -> bool:
    """Whether it is one that an array of 64 bits holds."""
    return text.isdecimal() and len(text) <= LONGEST_COUNT


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return math.nan if LARGEST < abs(value) < math.inf else value


def thinned(values: Sequence[float], limit: int = MOST_POINTS) -> list[int]:
    """Places of at most ``limit`` values that stand for all: first, last, and of each part the smallest and largest.

    So no peak is lost. Values that are not finite are left out where others are, in between.
    """
    count = len(values)
    if count <= limit:
        return list(range(count))
    parts, kept = (limit - 2) // 2, {0, count - 1}
    for part in range(parts):
        places = range(part * count // parts, (part + 1) * count // parts)
        finite = [place for place in places if math.isfinite(values[place])] or [places[0]]
        kept |= {min(finite, key=values.__getitem__), max(finite, key=values.__getitem__)}
    return sorted(kept)
