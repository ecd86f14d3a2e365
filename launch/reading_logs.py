"""``effnet logs``: what all ranks of a run wrote, in one stream by time, each line with its rank."""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from configs.run import RunDirectory

CLOCK = re.compile(rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}")
"""How the trainer's own lines begin. Others are of the time of the line before."""
POLL_S, STATE_EVERY_S = 0.3, 5.0


class RankLog:
    """Reads a rank's log from where it was read to before, whole lines only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._clock = b""
        self.attempt = path.parent.name
        self.rank = int(path.stem.removeprefix("rank_"))

    def lines(self, *, to_the_end: bool = False) -> Iterator[tuple[str, bytes, int, bytes]]:
        """New lines: attempt, time, rank, text. The last one may lack its end where no more is to come."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        if not to_the_end:
            content = content[: content.rfind(b"\n") + 1]
        self._offset += len(content)
        for line in content.splitlines():
            found = CLOCK.match(line)
            self._clock = found.group() if found else self._clock
            yield self.attempt, self._clock, self.rank, line


def show_logs(
    run: RunDirectory,
    write: Callable[[str], None],
    *,
    rank: int | None,
    attempt: int | None,
    follow: bool,
    active: Callable[[], bool],
    ask_every_s: float = STATE_EVERY_S,
) -> None:
    """Write the lines of an attempt; with ``follow``, those of the attempts after it too, until the run has ended.

    Args:
        run: Whose logs.
        write: Takes a line at a time.
        rank: Only this one; None is all.
        attempt: Which one to begin with; None is the last.
        follow: Wait for more.
        active: Whether more may come.
        ask_every_s: Seconds between two times that it is asked.
    """
    first = max(run.attempts - 1, 0) if attempt is None else attempt
    logs: dict[Path, RankLog] = {}
    asked = time.monotonic()
    goes_on = follow and active()
    while True:
        for path in _rank_logs(run, first, rank, follow=follow):
            logs.setdefault(path, RankLog(path))
        found = [line for log in logs.values() for line in log.lines(to_the_end=not goes_on)]
        for name, _, number, text in sorted(found, key=lambda line: line[:3]):
            prefix = f"{name} " if follow and name != f"attempt-{first:02d}" else ""
            write(f"{prefix}{number}: {text.decode('utf-8', 'replace')}")
        if not goes_on:
            return
        time.sleep(POLL_S)
        if time.monotonic() - asked > ask_every_s:
            asked, goes_on = time.monotonic(), active()


def _rank_logs(run: RunDirectory, first: int, rank: int | None, *, follow: bool) -> list[Path]:
    attempts = range(first, run.attempts) if follow else [first]
    pattern = "rank_*.log" if rank is None else f"rank_{rank:05d}.log"
    return [path for attempt in attempts for path in sorted(run.log_dir(attempt).glob(pattern))]
