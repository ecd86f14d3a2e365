"""Progress bars: what a long task asks for, and how a terminal shows it, or a log."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance: TypeAlias = Callable[[int], None]
Bar: TypeAlias = Callable[[str, int], AbstractContextManager[Advance]]
"""Takes what is done and how many of it there are; gives what to call with each number of them done."""
LINE_EVERY_S = 30.0
"""Seconds between two lines in a log: a short task leaves none."""


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda count: None


def progress_on(console: Console, *, quiet: bool = False) -> Bar:
    """Bars on a terminal, gone when they are full; where the output goes to a file a line now and then."""

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True) as progress:
            task = progress.add_task(what, total=total)
            yield lambda count: progress.advance(task, count)

    @contextmanager
    def lines(what: str, total: int) -> Iterator[Advance]:
        said = Lines(what, total)

        def advance(count: int) -> None:
            line = said.advance(count)
            if line is not None:
                console.print(line, highlight=False, markup=False, soft_wrap=True)

        yield advance

    if quiet:
        return no_bar
    return bar if console.is_terminal else lines


class Lines:
    """What a log has of a long task: how far it is, how fast, and how long it will take yet."""

    def __init__(self, what: str, total: int | None = None) -> None:
        """``total`` is how many there are to do; None where that is not known."""
        self._what, self._total = what, total
        self._done = 0
        self._began = self._said = time.monotonic()

    def advance(self, count: int) -> str | None:
        """So many more are done; returns a line when one is due."""
        self._done += count
        now = time.monotonic()
        if now - self._said < LINE_EVERY_S:
            return None
        self._said = now
        rate = self._done / (now - self._began)
        if self._total is None:
            return f"{self._what}: {self._done:,}, {_rate(rate)}"
        left = (self._total - self._done) / rate if rate else 0.0
        share = self._done / max(self._total, 1)
        text = f"{self._what}: {self._done:,} of {self._total:,} ({share:.0%}), {_rate(rate)}"
        return f"{text}, about {_duration(left)} left" if self._done < self._total else text


def _rate(per_second: float) -> str:
    return f"{per_second:,.0f}/s" if per_second >= 10 else f"{60 * per_second:,.1f}/min"


def _duration(seconds: float) -> str:
    minutes = seconds / 60
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes:.0f} min" if minutes < 90 else f"{minutes / 60:.1f} h"
