"""One attempt's W&B run: begun, kept on disk where the server is away, begun again where W&B's process has ended."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from lightning_fabric.loggers.logger import _DummyExperiment
from pytorch_lightning.loggers import WandbLogger

from trainer.logs import logger
from trainer.wandb_rows import RecentRows, has_room, mark_sent

INIT_TIMEOUT_S, FINISH_TIMEOUT_S = 15.0, 60.0
"""Longest waits for a server that is away, when an attempt begins (the client adds 10 s) and when it ends. W&B's own
are 90 s, and for ever. Rows that were not sent stay on disk."""
BEGINNINGS = 3
"""Times that an attempt begins W&B again whose process has ended."""
PAUSE_S = 1.1
"""W&B names its folders by the second."""
MOST_LATER = 20_000
"""Calls that wait until W&B is begun again, or the disk has room."""
AXES = ("samples_seen", "epoch", "attempt")
"""Of all charts, beside ``trainer/global_step``, which Lightning defines."""


class UnbrokenWandbLogger(WandbLogger):
    """W&B's run through what happens to it; what is logged to it is for `SafeWandbLogger` to say.

    Where W&B's process ends, it is begun again in the same run by a thread, and gets what it has missed: no step of
    training waits for it. Rows of a run that is kept on disk wait for room on a full one.

    Attributes:
        dead: Whether this attempt has no W&B any more.
    """

    def __init__(self, *, sync: str = "wandb sync", **arguments: Any) -> None:
        """Begin nothing yet.

        Args:
            sync: The command that sends later what could not be sent.
            arguments: WandbLogger's.
        """
        super().__init__(**arguments)
        self.dead = False
        self._sync = sync
        self._rows = RecentRows()
        self._beginner: threading.Thread | None = None
        self._beginning = False
        self._full_since: float | None = None
        self._begun_again = 0
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._later: deque[tuple[int | None, Callable[[], Any]]] = deque(maxlen=MOST_LATER)

    @property
    def experiment(self) -> Any:
        """W&B's run, begun when first asked for, which Lightning does too.

        If that fails, one that is kept on disk; and if that does too, one that does nothing, as while it is begun
        again.
        """
        if self._beginning and threading.current_thread() is not self._beginner:
            return _DummyExperiment()
        if not self.dead:
            try:
                return self._begun()
            except Exception as error:  # whatever W&B raises, training is worth more
                if not self._offline and self._begins_offline(error):
                    return self._experiment
                self._give_up(error)
        return _DummyExperiment()

    @property
    def is_offline(self) -> bool:
        """Whether this attempt is kept on disk alone, to be sent later."""
        return bool(self._offline)

    def finish(self, exit_code: int, *, within_s: float | None = None) -> None:
        """End this attempt's part of the run, ``within_s`` where something else will end the process then."""
        if within_s is None or within_s >= FINISH_TIMEOUT_S:
            self._end(exit_code)
            return
        # In a thread: how long W&B itself waits is settled when it begins.
        ending = threading.Thread(target=self._end, args=(exit_code,), name="wandb end", daemon=True)
        ending.start()
        ending.join(within_s)
        if ending.is_alive():
            self._say_unsent(within_s)

    def _end(self, exit_code: int) -> None:
        if self._full_since is not None:
            self._has_room()
        try:
            self._await()
            try:
                self._finish(exit_code)
            except ConnectionError as error:  # its process has ended since the last row
                self._begin_again(error)
                self._await()
                self._finish(exit_code)
        except Exception as error:
            self._give_up(error)

    def _finish(self, exit_code: int) -> None:
        if self.dead:
            return
        run = self.experiment
        try:
            run.finish(exit_code=exit_code)
        except TimeoutError:
            self._say_unsent(FINISH_TIMEOUT_S)
        else:
            if not self._offline:
                mark_sent(run)
        lost = [step for step, _ in self._later if step is not None]
        if lost:
            text = "the disk has had no room for %d rows of W&B, of steps %d to %d (%s has those that found room)"
            logger.warning(text, len(lost), lost[0], lost[-1], "metrics.csv")

    def _log_row(self, metrics: Mapping[str, float], step: int | None) -> None:
        self._rows.add(self.experiment, metrics, step)
        super().log_metrics(dict(metrics), step)

    def _has_room(self) -> bool:
        """Whether an offline run's row can be written; if it can again, in a file that is begun anew."""
        if not has_room(self.save_dir):
            self._full_since = self._full_since or time.monotonic()
            self._say("the disk is full: rows of W&B wait for room")
            return False
        if self._full_since is not None:
            since, self._full_since = self._full_since, None
            self._begin_again(None, since=since)
        return True

    def _begin_again(self, error: Exception | None, *, since: float | None = None) -> None:
        """Begin W&B again in a thread: its process has ended, or a full disk has cut its file short, ``since`` then."""
        with self._lock:
            if self._beginning or self.dead:
                return
            if error is not None:
                self._begun_again += 1
            if self._begun_again > BEGINNINGS:
                assert error is not None
                self._give_up(error)
                return
            self._beginning = True
            self._beginner = threading.Thread(
                target=self._anew, args=(error, since or time.monotonic()), name="wandb", daemon=True
            )
            self._beginner.start()

    def _anew(self, error: Exception | None, ended: float) -> None:
        import wandb
        from wandb.sdk.lib import module

        time.sleep(PAUSE_S)
        old: Any = self._experiment
        with suppress(Exception, SystemExit):
            if error is None:
                old.finish()
            else:
                wandb.teardown()  # what is left of it
        module.unset_globals()  # type: ignore[no-untyped-call]  # or Lightning takes the run that has ended
        self._experiment = None
        try:
            self._begun()
        except Exception as second:
            if self._offline or not self._begins_offline(second):
                self._give_up(second)
        else:
            if error is not None:
                self._say("W&B's process has ended: it is begun again in the same run (%s)", first_line(error))
        self._catch_up(old, ended)

    def _catch_up(self, old: Any, ended: float) -> None:
        """Log what the old run has not got, and what has come since."""
        step: int | None = None
        call: Callable[[], Any] = _nothing
        try:
            if not self.dead:
                missing, all_of_them = self._rows.take(self._experiment, ended=ended, offline=bool(self._offline))
                calls = [(row.step, partial(self._log_row, row.metrics, row.step)) for row in missing]
                with self._lock:
                    self._later.extendleft(reversed(calls))
                if all_of_them:
                    mark_sent(old)
            while True:
                with self._lock:
                    if self.dead or not self._later:
                        self._beginning = False
                        return
                    step, call = self._later.popleft()
                call()
        except ConnectionError as error:
            if step is None:
                self._later.appendleft((step, call))
            self._beginning = False
            self._begin_again(error)
        except Exception as error:
            self._beginning = False
            self._give_up(error)

    def _await(self) -> None:
        """Wait until W&B is begun again, if it is being."""
        if self._beginner is not None:
            self._beginner.join(FINISH_TIMEOUT_S)
        if self._beginning:
            raise TimeoutError("its process has ended, and it is not begun again yet")

    def _begun(self) -> Any:
        new = self._experiment is None
        experiment = super().experiment
        if new and self._experiment is not None:
            for axis in AXES:
                experiment.define_metric(axis)
        return experiment

    def _begins_offline(self, error: Exception) -> bool:
        """Where W&B cannot be reached, or refuses: keep what it would have got."""
        import wandb

        with suppress(Exception, SystemExit):  # its service believes that the run is begun
            wandb.teardown()
        self._offline, self._experiment = True, None
        self._wandb_init |= {"mode": "offline"}
        self._wandb_init["settings"] = wandb.Settings(
            finish_timeout=FINISH_TIMEOUT_S, finish_timeout_raises=True, x_transaction_log_flush_interval=1.0
        )
        try:
            self._begun()
        except Exception as second:
            self._give_up(second)
            return False
        text = "W&B cannot be reached: this attempt is kept on disk, and to be sent by: %s (%s)"
        logger.warning(text, self._sync, first_line(error))
        return True

    def _guard(self, call: Callable[[], Any], step: int | None = None) -> None:
        """What W&B may not refuse. ``step``: of the row that it is."""
        if self.dead or self._deferred(call, step):
            return
        try:
            call()
        except ConnectionError as error:
            if step is None:  # a row is among the recent ones
                self._later.append((step, call))
            self._begin_again(error)
        except Exception as error:
            self._give_up(error)

    def _deferred(self, call: Callable[[], Any], step: int | None) -> bool:
        """Whether a call waits until W&B is begun again."""
        if threading.current_thread() is self._beginner:
            return False
        with self._lock:
            if self._beginning:
                self._later.append((step, call))
            return self._beginning

    def _say(self, text: str, *values: object) -> None:
        """Once an attempt."""
        if text not in self._said:
            self._said.add(text)
            logger.warning(text, *values)

    def _say_unsent(self, waited_s: float) -> None:
        text = "W&B has not taken all rows in %.0f s: they are on disk, and to be sent by: %s"
        logger.warning(text, waited_s, self._sync)

    def _give_up(self, error: Exception) -> None:
        if not self.dead:
            self.dead = True
            text = "W&B failed and is off for this attempt (metrics.csv goes on); what it has is to be sent by: %s (%s)"
            logger.warning(text, self._sync, first_line(error))


def _nothing() -> None:
    """Of use where there is no call yet."""


def first_line(error: Exception) -> str:
    """What an error says, or is."""
    return (str(error) or type(error).__name__).partition("\n")[0]
