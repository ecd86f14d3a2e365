"""What asks for a checkpoint from outside of training: time that has passed, and files in the run directory.

Rank 0 alone looks; trainer/agreement.py tells the others.
"""

import contextlib
import os
import time
from pathlib import Path

import psutil

from configs.run import STARTED, RunDirectory
from trainer.logs import logger

STOP, SAVE = "STOP", "SAVE"
"""Files that a person puts in a run directory, to end the run with a checkpoint or to have one and go on."""
LOOK_EVERY_S = 1.0
"""Seconds between two looks at the run directory, which may lie on a server."""


class Triggers:
    """Says when a save is due, once for each."""

    def __init__(self, run_dir: Path, *, every_s: float | None, max_time_s: float | None = None) -> None:
        """Times in seconds, or None.

        ``every_s`` is from a checkpoint of any kind to the next one, ``max_time_s`` from the start of the launcher,
        whose first attempt this need not be, or else of this process.
        """
        started = float(os.environ.get(STARTED) or psutil.Process().create_time())
        self._ends = None if max_time_s is None else time.monotonic() + started + max_time_s - time.time()
        self._run_dir = run_dir
        self._every_s = every_s
        self._due = time.monotonic() + every_s if every_s is not None else None
        self._retry: float | None = None
        self._looked = float("-inf")
        self.stop = False

    @property
    def time_is_up(self) -> bool:
        """Whether the run has had its time."""
        return self._ends is not None and time.monotonic() >= self._ends

    def started(self) -> None:
        """A save has begun: count from here."""
        self._due = time.monotonic() + self._every_s if self._every_s is not None else None
        self._retry = None

    def retry_in(self, seconds: float) -> None:
        """A save has failed, and is due again before its time."""
        self._retry = time.monotonic() + seconds

    def save_is_due(self) -> bool:
        """Whether to save now. True once; the next time is counted from here. Looks whether a person asks for it."""
        asked = self._look()
        times = [at for at in (self._due, self._retry) if at is not None]
        if not asked and not any(time.monotonic() >= at for at in times):
            return False
        self.started()
        return True

    def stopped(self) -> None:
        """Remove the file that asked to stop, or the next attempt would do so at once; and let none come by itself."""
        if self.stop:
            self.stop = False
            with contextlib.suppress(OSError):
                RunDirectory(self._run_dir).keep_from_queue()
            self._remove(STOP)

    def _look(self) -> bool:
        """See whether a file asks to stop, and return whether one asks to save."""
        now = time.monotonic()
        if now - self._looked < LOOK_EVERY_S:
            return False
        self._looked = now
        self.stop = (self._run_dir / STOP).exists()
        return (self._run_dir / SAVE).exists() and self._remove(SAVE)

    def _remove(self, name: str) -> bool:
        file = self._run_dir / name
        try:
            file.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s cannot be removed, do so before the run goes on: %s", file, error)
            return False
        logger.info("%s was honoured, and removed", file)
        return True
