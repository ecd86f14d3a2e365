"""Ends a rank that makes no progress, after it has written the stacks of all its threads to its log."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from configs.exit_codes import EXIT_RETRY
from configs.rank_records import HANG, StepFile, rank_log, record_rank_error
from trainer.logs import logger

STARTUP_S = 1800.0
"""Least time until the end of the first micro-batch: kernels are compiled, remote shards fetched."""
GRACE_S = 5.0
"""From a rank's stacks to its end: when one ends, the others are told to, and by then have written theirs."""
POLL_S = 1.0
"""Longest time between two looks."""
STDERR = 2
"""The rank's log, whatever a library has made of sys.stderr."""


class Watchdog:
    """A thread that ends the process when nobody has called `alive` for a while, and leaves word of it.

    Where the main thread waits in C with Python's interpreter lock, no other runs: then faulthandler's own thread,
    which needs no lock, does the same but for the word.
    """

    def __init__(self, log_dir: Path, global_rank: int, *, timeout_s: float | None) -> None:
        """None as the timeout watches nothing."""
        self._log_dir = log_dir
        self._global_rank = global_rank
        self._timeout_s = timeout_s
        self._allowed_s = 0.0
        self._last = 0.0
        self._stopped = threading.Event()

    def start(self) -> None:
        """Watch from now on; until `begin`, with the time that a start may take."""
        if self._timeout_s is not None:
            self._allowed_s = max(self._timeout_s, STARTUP_S)
            self.alive()
            threading.Thread(target=self._watch, args=(self._timeout_s,), name="watchdog", daemon=True).start()

    def begin(self) -> None:
        """From now on, the timeout holds as it was given."""
        if self._timeout_s is not None:
            self._allowed_s = self._timeout_s

    def alive(self) -> None:
        """There was progress. Two writes to memory."""
        self._last = time.monotonic()

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _watch(self, timeout_s: float) -> None:
        poll_s = min(POLL_S, timeout_s / 10)
        dumped_for: float | None = None
        while not self._stopped.wait(poll_s):
            last, allowed_s = self._last, self._allowed_s
            over_s = time.monotonic() - last - allowed_s
            # Again and again, so that it comes only where this thread does not.
            left_s = max(-over_s, 0.0) + 2 * (GRACE_S + POLL_S)
            faulthandler.dump_traceback_later(left_s, exit=True, file=STDERR)
            if over_s >= 0 and dumped_for != last:
                dumped_for = last
                logger.error("no progress in %g s (fault.hang_timeout_s); the stacks of all threads follow", allowed_s)
                faulthandler.dump_traceback(STDERR, all_threads=True)
            elif over_s >= GRACE_S:
                self._end(allowed_s)

    def _end(self, allowed_s: float) -> None:
        where = f"the stacks of its threads are in {rank_log(self._log_dir, self._global_rank)}"
        reason = f"no progress in {allowed_s:g} s (fault.hang_timeout_s); {where}"
        record_rank_error(self._log_dir, self._global_rank, code=EXIT_RETRY, reason=reason, error=HANG)
        sys.stderr.flush()
        os._exit(EXIT_RETRY)


class WatchdogCallback(Callback):
    """Tells the watchdog of all that is progress, and launchers of the last step. Must be the first callback.

    What comes before training (indexes, a remote checkpoint) and after it (W&B, uploads) has limits of its own.
    """

    def __init__(self, watchdog: Watchdog, steps: StepFile) -> None:
        self._watchdog = watchdog
        self._steps = steps
        self._step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch from here on."""
        self._watchdog.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Where this attempt begins."""
        self._progress(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """A micro-batch."""
        self._watchdog.begin()
        self._progress(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A validation begins."""
        self._progress(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """A batch of it."""
        self._progress(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint."""
        self._progress(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The end of watching."""
        self._watchdog.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The end of watching."""
        self._watchdog.stop()

    def _progress(self, trainer: Trainer) -> None:
        self._watchdog.alive()
        if trainer.global_step != self._step:
            self._step = trainer.global_step
            self._steps.write(self._step)
