"""The saves of one attempt, on all ranks: whole or in parts, waited for where they must be, counted where they fail.

When to save, and what a checkpoint holds beyond Lightning's, is trainer/checkpointing.py's.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy
from safetensors import SafetensorError

from configs.schema import Config
from trainer import zero_files
from trainer.agreement import Agreement
from trainer.checkpoint_files import CHECKPOINT, WEIGHTS, CheckpointFile
from trainer.checkpoints import CheckpointDirectory
from trainer.consolidation import save_weights
from trainer.host_copy import HostCopy
from trainer.logs import logger
from trainer.metrics import log_row
from trainer.module import EfficientNetModule
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.retention import Retention
from trainer.saver import ATTEMPTS, Result, Saver, reason
from trainer.tracking import alert

FAILURES = "checkpoint/failures"
"""Metric: saves that have failed in a row."""
LONGEST_PAUSE_S = 600.0
WAIT_S = 5.0
"""Between two agreements that the last save is still under way."""
UNFINISHED = "the save before it is still being written"


class SaveFailedError(Exception):
    """A checkpoint that had to be written was not. The one before it is whole."""


class Saves:
    """Begins saves on all ranks, and on rank 0 writes them.

    Attributes:
        saved_step: Step of the newest save that was begun, or that the attempt went on from.
        stalled_s: Seconds for which training has waited for saves on this rank.
    """

    def __init__(
        self,
        config: Config,
        directory: CheckpointDirectory,
        agreement: Agreement,
        *,
        writes: bool,
        retry_in: Callable[[float], None],
        alive: Callable[[], None],
        saved: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Make what writes, on the one rank that does.

        Args:
            config: Of the attempt.
            directory: Where to.
            agreement: Of all ranks.
            writes: Whether this is rank 0.
            retry_in: Called with the seconds after which a save that has failed is to be tried again.
            alive: Called now and then while saves are waited for, which is no hang.
            saved: Told of each checkpoint that is where it should be, as `Saver` says.
        """
        self._config = config
        self._directory = directory
        self._agreement = agreement
        self._retry_in = retry_in
        self._alive = alive
        self._copy = HostCopy()
        self._failures = 0
        self._failed: Result | None = None
        self._saver: Saver | None = None
        if writes:
            remote = RemoteCheckpoints.of(config, directory.path.parent.name)
            self._saver = Saver(directory, Retention.of(config), remote, saved=saved)
        self.saved_step: int | None = None
        self.stalled_s = 0.0

    def upload(self, step: int, checkpoint: Path) -> None:
        """Rank 0: upload what an earlier attempt could not."""
        if self._saver is not None:
            self._saver.upload(step, checkpoint)

    def save(self, trainer: Trainer, manifest: dict[str, Any], *, last: bool = False) -> None:
        """Collective: every rank takes part, rank 0 names the result. The ``last`` one must succeed."""
        called = time.perf_counter()
        if self.saved_step != trainer.global_step:
            if last:
                self._await(trainer)
            begun = time.perf_counter()
            if isinstance(trainer.strategy, DeepSpeedStrategy):
                self._save_parts(trainer, manifest, begun, attempts=ATTEMPTS if last else 1)
            else:
                self._save_whole(trainer, manifest, begun)
            self.saved_step = trainer.global_step
            if self._saver is not None and not self._config.checkpoint.asynchronous:
                self._saver.wait()
        if last:
            self.conclude(trainer)
        self.stalled_s += time.perf_counter() - called

    def failed_too_often(self, trainer: Trainer) -> bool:
        """Rank 0: look what has come of the saves that have ended; whether as many in a row have failed as may."""
        if self._saver is None:
            return False
        self._take_results(trainer)
        return self._failures >= self._config.checkpoint.max_failures

    def give_up(self) -> None:
        """Collective: end, unless a save has succeeded since the ranks agreed to.

        Raises:
            SaveFailedError: With the last error.
        """
        error = self._agreement.first(self._failed.error if self._failed is not None else None)
        if error is not None:
            raise SaveFailedError(
                f"{self._config.checkpoint.max_failures} saves in a row failed (checkpoint.max_failures), "
                f"the last: {error}; the last good checkpoint is {self._directory.newest() or 'none'}"
            )

    def conclude(self, trainer: Trainer) -> None:
        """Collective: wait for all that is under way, and end with an error if the last save has failed.

        Raises:
            SaveFailedError: With the error.
        """
        self._await(trainer)
        error = self._agreement.first(self._failed.error if self._failed is not None else None)
        if error is not None:
            raise SaveFailedError(
                f"the checkpoint of step {trainer.global_step} is not where it should be: {error}; "
                f"the last good one is {self._directory.newest() or 'none'}"
            )

    def wait(self, timeout_s: float) -> bool:
        """Wait for the save that is under way on this rank, if there is one; returns whether none is any more."""
        return self._saver is None or self._saver.wait(timeout_s)

    def _save_whole(self, trainer: Trainer, manifest: dict[str, Any], begun: float) -> None:
        """One file, of which rank 0 has all; the other ranks give their part of what callbacks keep."""
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if self._saver is None or not self._ready(trainer):
            return
        if self._config.checkpoint.asynchronous:
            state = self._copy.of(state)

        def write(directory: Path) -> None:
            CheckpointFile().save_checkpoint(state, directory / CHECKPOINT)

        self._saver.save(trainer.global_step, _stalled(manifest, begun), write)

    def _save_parts(self, trainer: Trainer, manifest: dict[str, Any], begun: float, *, attempts: int) -> None:
        """DeepSpeed's files, which all ranks write while training waits; rank 0 names and uploads them later."""
        target = self._directory.temporary(trainer.global_step)
        error: str | None = None
        for _ in range(attempts):
            error = self._agreement.first(self._begin_parts(trainer))
            if error is None:
                error = self._agreement.first(_write_parts(trainer, target))
            if error is None:
                break
        if self._saver is None:
            return
        if error is not None:
            self._saver.fail(trainer.global_step, error)
        else:
            self._saver.save(trainer.global_step, _stalled(manifest, begun), None)

    def _begin_parts(self, trainer: Trainer) -> str | None:
        """Rank 0: make the folders; returns why not."""
        if self._saver is None:
            return None
        if not self._saver.wait(self._config.fault.timeout_s / 2):
            return UNFINISHED
        try:
            zero_files.prepare(self._directory.begin(trainer.global_step) / CHECKPOINT)
        except OSError as error:
            return reason(error)
        return None

    def _ready(self, trainer: Trainer) -> bool:
        """Rank 0: wait for the save before this one, though not so long that the other ranks give up on this one."""
        assert self._saver is not None
        if self._saver.wait(self._config.fault.timeout_s / 2):
            return True
        self._saver.fail(trainer.global_step, UNFINISHED)
        return False

    def _await(self, trainer: Trainer) -> None:
        """Collective: wait for what is under way on rank 0, however long, without a rank that gives up on it."""
        word: str | None = UNFINISHED
        while word is not None:
            self._alive()
            done = self._saver is None or self._saver.wait(min(self._config.fault.timeout_s / 2, WAIT_S))
            word = self._agreement.first(None if done else UNFINISHED)
        if self._saver is not None:
            self._take_results(trainer)

    def _take_results(self, trainer: Trainer) -> None:
        """Rank 0: say what came of the saves that have ended, and have one that failed tried again."""
        assert self._saver is not None
        settings = self._config.checkpoint
        for result in self._saver.results():
            if result.error is None:
                logger.debug("saved %s in %.1f s", result.path, result.seconds)
                self._failed = None
                if self._failures:
                    self._failures = 0
                    log_row(trainer, {FAILURES: 0.0})
                continue
            self._failures, self._failed = self._failures + 1, result
            pause_s = min(settings.retry_pause_s * 2 ** (self._failures - 1), LONGEST_PAUSE_S)
            self._retry_in(pause_s)
            count = f"{self._failures} of {settings.max_failures} in a row"
            text = f"checkpoint of step {result.step} failed ({count}): {result.error}"
            logger.warning(text)
            log_row(trainer, {FAILURES: float(self._failures)})
            alert(trainer, "checkpoint failed", text)


def _stalled(manifest: dict[str, Any], begun: float) -> dict[str, Any]:
    """A manifest with the seconds for which training has waited since ``begun``."""
    return {**manifest, "stall_s": round(time.perf_counter() - begun, 4)}


def _write_parts(trainer: Trainer, target: Path) -> str | None:
    """Collective: write this rank's parts; returns why it could not."""
    strategy, module = trainer.strategy, trainer.lightning_module
    assert isinstance(strategy, DeepSpeedStrategy)
    assert isinstance(module, EfficientNetModule)
    with zero_files.errors_kept(strategy.deepspeed_engine) as errors:
        trainer.save_checkpoint(target / CHECKPOINT)
    try:
        save_weights(trainer, module.network, module.average, target / WEIGHTS)
    except (OSError, SafetensorError) as error:
        errors.append(error)
    return reason(errors[0]) if errors else None
