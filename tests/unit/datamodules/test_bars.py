"""What is shown of a long task: a bar on a terminal, lines in a log, nothing where that is asked for."""

import io

import pytest
from rich.console import Console

from datamodules import bars
from datamodules.bars import progress_on


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bars, "time", made)
    return made


def shown(clock: Clock, *, terminal: bool, quiet: bool = False, total: int = 4000, seconds: float = 10.0) -> str:
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=100)
    with progress_on(console, quiet=quiet)("indexing shards", total) as advance:
        for _ in range(10):
            clock.now += seconds
            advance(100)
    return output.getvalue()


def test_a_log_gets_a_line_now_and_then(clock: Clock) -> None:
    assert shown(clock, terminal=False).splitlines() == [
        "indexing shards: 300 of 4,000 (8%), 10/s, about 6 min left",
        "indexing shards: 600 of 4,000 (15%), 10/s, about 6 min left",
        "indexing shards: 900 of 4,000 (22%), 10/s, about 5 min left",
    ]
    slow = shown(clock, terminal=False, seconds=3600.0, total=1000).splitlines()
    assert slow[0] == "indexing shards: 100 of 1,000 (10%), 1.7/min, about 9.0 h left"
    assert slow[-1] == "indexing shards: 1,000 of 1,000 (100%), 1.7/min"


def test_a_log_of_a_short_task_has_no_line(clock: Clock) -> None:
    assert shown(clock, terminal=False, seconds=1.0) == ""


def test_a_terminal_has_a_bar(clock: Clock) -> None:
    assert "1000/4000" in shown(clock, terminal=True)


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_nothing(terminal: bool, clock: Clock) -> None:
    assert shown(clock, terminal=terminal, quiet=True) == ""
