"""Progress bars: what a long task asks for, and how a terminal shows it."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TypeAlias

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Advance: TypeAlias = Callable[[int], None]
Bar: TypeAlias = Callable[[str, int], AbstractContextManager[Advance]]
"""Takes what is done and how many of it there are; gives what to call with each number of them done."""


@contextmanager
def no_bar(what: str, total: int) -> Iterator[Advance]:
    """Show nothing."""
    yield lambda count: None


def terminal_bar(console: Console) -> Bar:
    """Bars on a terminal, gone when they are full; nothing where the output goes to a file."""

    @contextmanager
    def bar(what: str, total: int) -> Iterator[Advance]:
        columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
            task = progress.add_task(what, total=total)
            yield lambda count: progress.advance(task, count)

    return bar
