"""What all benchmarks share: contestants take turns in one run, medians count, a table and a line of JSON tell."""

import faulthandler
import json
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from types import FrameType

from rich.console import Console
from rich.table import Table


def say_when_ended() -> None:
    """From here on, also an end by a signal or a crash in native code says so on standard error.

    By themselves SIGTERM and SIGHUP end Python without a word, and leave the processes that it has started behind.
    """
    faulthandler.enable()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)


def _end(number: int, _: FrameType | None) -> None:
    print(f"ended by {signal.Signals(number).name}", file=sys.stderr, flush=True)
    sys.exit(128 + number)


def take_turns(contestants: Mapping[str, Callable[[], float]], *, rounds: int) -> dict[str, list[float]]:
    """Let each contestant measure itself once a round, so that what disturbs the machine disturbs all alike."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, measure in contestants.items():
            print(f"round {turn + 1}/{rounds}: {name}", file=sys.stderr, flush=True)
            found[name].append(measure())
    return found


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def report(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table."""
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*row)
    Console(width=120).print(table)


def finish(values: Mapping[str, float]) -> None:
    """Print the last line: one JSON object."""
    print(json.dumps({name: float(f"{value:.4g}") for name, value in values.items()}), flush=True)
