"""Numbers, times and sizes as a person reads them."""

import math
from datetime import UTC, datetime

UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
NOTHING = "\N{EN DASH}"


def number(value: float | None, *, percent: bool = False) -> str:
    """Four significant digits, thousands apart."""
    if value is None:
        return NOTHING
    if not math.isfinite(value):
        return str(value)
    if percent:
        return f"{value:.2%}".replace("%", "\N{NARROW NO-BREAK SPACE}%")
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """Such as ``2 h 5 min``: the two largest units."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    rest = max(round(seconds), 0)
    parts: list[str] = []
    for size, unit in UNITS:
        count, rest = divmod(rest, size)
        if count or (parts and len(parts) < 2):
            parts.append(f"{count} {unit}" if count else "")
        if len(parts) == 2:
            break
    return " ".join(filter(None, parts)).replace(" ", "\N{NO-BREAK SPACE}") or "0\N{NO-BREAK SPACE}s"


def moment(seconds: float | None) -> str:
    """A time since the epoch, in UTC."""
    if seconds is None:
        return NOTHING
    try:
        return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def size(count: float | None) -> str:
    """Bytes, in units of 1,000."""
    if count is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if abs(count) < 1000 or unit == "TB":
            break
        count /= 1000
    return f"{count:.3g}\N{NO-BREAK SPACE}{unit}"


def counted(count: int, one: str, several: str | None = None) -> str:
    """Such as ``2 attempts``."""
    return f"{count:,}\N{NO-BREAK SPACE}{one if count == 1 else several or one + 's'}"
