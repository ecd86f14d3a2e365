"""A report as a person reads it: a table, and the lines that end a job in a few words."""

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from trainer.doctor.line import Line

STYLES = {"ok": "green", "warn": "yellow", "fail": "red", "skip": "dim"}
WIDTH = 140
"""Columns where there is no terminal."""


def show(lines: Sequence[Line], console: Console | None) -> None:
    """Print a table to this rank's log, which ``effnet logs`` shows, and to a console."""
    Console(file=sys.stdout, width=WIDTH).print(table(lines))
    if console is not None:
        width = console.width if console.is_terminal else WIDTH
        Console(file=console.file, width=width, quiet=console.quiet).print(table(lines))


def table(lines: Sequence[Line]) -> Table:
    """A report for a person."""
    shown = Table(highlight=False)
    for column in ("", "check", "node", "measured", "expected", "what to do"):
        shown.add_column(column, overflow="fold")
    for line in lines:
        style = STYLES[line.status]
        shown.add_row(f"[{style}]{line.status}[/]", *map(_plain, _cells(line)))
    return shown


def _cells(line: Line) -> tuple[str, ...]:
    return line.check, line.node, line.measured, line.expected, line.advice


def _plain(text: str) -> str:
    """Without what rich would take for markup."""
    return text.replace("[", "\\[")


def summary(bad: Sequence[Line]) -> str:
    """Each on a line, nodes first: where one line is shown, it names one."""
    bad = sorted(bad, key=lambda line: line.node == "all")
    return "\n".join(f"{each.node}: {each.check}: {each.measured}; expected: {each.expected}" for each in bad)
