"""From values to places in a drawing: linear and logarithmic axes with round numbers on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

STEEP = 100.0
"""A largest value so many times the median is drawn on a logarithmic axis: else all but a peak would be one line."""

THOUSANDS = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Scale:
    """An axis.

    Attributes:
        low: Value at its beginning.
        high: Value at its end, larger.
        start: Place of the beginning, in units of the drawing.
        end: Place of the end.
        log: Whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value."""
        low, high = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        at = math.log(max(value, self.low)) if self.log else value
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the axis, about so many."""
        return _decades(self.low, self.high) if self.log else _round_values(self.low, self.high, count)


def scale_of(
    values: Sequence[float], start: float, end: float, *, from_zero: bool = False, may_be_log: bool = False
) -> Scale:
    """An axis on which all finite values have a place, with some room above and below."""
    finite = sorted(filter(math.isfinite, values)) or [0.0, 1.0]
    low, high, median = finite[0], finite[-1], finite[len(finite) // 2]
    if may_be_log and low > 0 and high > STEEP * median:
        return Scale(low / 1.2, high * 1.2, start, end, log=True)
    low = min(low, 0.0) if from_zero else low
    if not high > low:
        high, low = (high + (abs(high) or 1.0) * 0.5, low if from_zero and not low else low - (abs(low) or 1.0) * 0.5)
    room = (high - low) * 0.06
    return Scale(low if from_zero and low == 0 else low - room, high + room, start, end)


def tick_label(value: float, ticks: Sequence[float], *, percent: bool = False, log: bool = False) -> str:
    """A tick's number, all of a linear axis with the same unit and decimals."""
    if log:
        ticks = [value]
    if value == 0 and not percent:
        return "0"
    apart = min((b - a for a, b in pairwise(ticks)), default=abs(value))
    largest = max(map(abs, ticks), default=0.0)
    if percent:
        return f"{value * 100:.{_decimals(apart * 100)}f}\N{NARROW NO-BREAK SPACE}%"
    if 0 < largest < 1e-3 or largest >= 1e15:
        return f"{value:.2g}"
    unit, letter = next(((unit, letter) for unit, letter in THOUSANDS if largest >= 10 * unit), (1.0, ""))
    return f"{value / unit:,.{_decimals(apart / unit)}f}{letter}"


def _decimals(apart: float) -> int:
    return max(0, -math.floor(math.log10(apart) + 1e-9)) if apart > 0 else 0


def _round_values(low: float, high: float, count: int) -> list[float]:
    raw = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    apart = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= raw * 0.999)
    first, last = math.ceil(low / apart - 1e-9), math.floor(high / apart + 1e-9)
    return [place * apart for place in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    apart = max((last - first) // 5, 1)
    return [10.0**power for power in range(first, last + 1, apart)] or [low, high]
