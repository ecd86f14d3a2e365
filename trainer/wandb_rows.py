"""Rows that W&B may not have yet, and its own files of an attempt: what is needed to go on where its process ended."""

import os
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

KEPT_ROWS = 5000
FLUSHED_S = 3.0
"""A row that is older is in W&B's file: it is written within a second."""
ROOM_BYTES = 1_000_000
"""Below it a disk is full: W&B's file does not survive a write that fails."""


class Row(NamedTuple):
    """What was logged.

    Attributes:
        number: W&B's own step of it.
        logged: `time.monotonic`.
        metrics: Values by name.
        step: Optimizer steps.
    """

    number: int
    logged: float
    metrics: Mapping[str, float]
    step: int | None


class RecentRows:
    """The last rows of an attempt."""

    def __init__(self) -> None:
        self._rows: deque[Row] = deque(maxlen=KEPT_ROWS)

    def add(self, run: Any, metrics: Mapping[str, float], step: int | None) -> None:
        """A row that ``run`` is about to be given."""
        self._rows.append(Row(run._local_step, time.monotonic(), metrics, step))

    def take(self, run: Any, *, ended: float, offline: bool) -> tuple[list[Row], bool]:
        """The rows that a run lacks which has been begun again, and whether these are known to be all.

        Online the server has said how many it has. Offline the file has all but the last second; what is in both is the
        same row, and shown as one.

        Args:
            run: W&B's, begun.
            ended: When W&B's process was found to have ended, by `time.monotonic`.
            offline: Whether it is kept on disk.
        """
        rows = list(self._rows)
        self._rows.clear()
        if offline:
            return [row for row in rows if row.logged > ended - FLUSHED_S], False
        missing = [row for row in rows if row.number >= run.starting_step]
        return missing, len(missing) < KEPT_ROWS


def has_room(folder: str | None) -> bool:
    """Whether rows can be written there."""
    try:
        found = os.statvfs(folder or ".")
    except OSError:
        return True
    return found.f_bavail * found.f_frsize >= ROOM_BYTES


def mark_sent(run: Any) -> None:
    """Have ``wandb sync`` pass over the file of a run whose rows the server has: it would send them again."""
    file = Path(run.settings.sync_file)
    if file.exists():
        file.with_name(f"{file.name}.synced").touch()
