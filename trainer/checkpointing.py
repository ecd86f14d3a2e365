"""When to save, what goes into a checkpoint beyond Lightning's, how a run goes on from one, and how signals end it."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy
from safetensors import SafetensorError

from configs.run import config_hash
from configs.schema import Config
from datamodules.imagenet import ImageNetDataModule
from trainer import zero_files
from trainer.agreement import Agreement, Votes
from trainer.checkpoints import CHECKPOINT, FORMAT_VERSION, KEY, WEIGHTS, CheckpointDirectory, CheckpointFile, step_of
from trainer.consolidation import save_weights
from trainer.host_copy import HostCopy
from trainer.logs import logger
from trainer.metrics import log_row
from trainer.module import EfficientNetModule
from trainer.network import build_network
from trainer.optimization import build_optimizer, build_scheduler
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.resuming import START_ANEW, Start
from trainer.retention import Retention
from trainer.saver import ATTEMPTS, Result, Saver, reason
from trainer.signals import StopFlag
from trainer.strategies import ZeroStrategy
from trainer.tracking import SafeWandbLogger
from trainer.triggers import STOP, Triggers

FAILURES = "checkpoint/failures"
"""Metric: saves that have failed in a row."""
LONGEST_PAUSE_S = 600.0
WAIT_S = 5.0
"""Between two agreements that the last save is still under way."""
TIME_IS_UP = "time is up (fault.max_time_minutes)"
UNFINISHED = "the save before it is still being written"


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was checkpointed after a signal, on all ranks at the same step."""


class SaveFailedError(Exception):
    """A checkpoint that had to be written was not. The one before it is whole."""


class Checkpointing(Callback):
    """Saves at step boundaries, and restores. Must be the last callback: it saves what the others did.

    A checkpoint holds no state of Lightning's loops. Where a run stands is its number of optimizer steps; epoch and
    data position follow from it, and the loops are set to them. Lightning's own restart in mid-epoch replays or skips
    work: https://github.com/Lightning-AI/pytorch-lightning/issues/19549 and /20550.
    """

    def __init__(
        self,
        config: Config,
        directory: CheckpointDirectory,
        flag: StopFlag,
        *,
        facts: dict[str, Any],
        start: Start = START_ANEW,
        alive: Callable[[], None] = lambda: None,
    ) -> None:
        """Facts are plain values that go into every checkpoint: attempt, git SHA, W&B id.

        While saves are waited for, which is no hang, ``alive`` is called now and then.
        """
        self._config = config
        self._directory = directory
        self._flag = flag
        self._facts = facts
        self._start = start
        self._alive = alive
        self._agreement: Agreement | None = None
        self._saver: Saver | None = None
        every, most = (
            None if minutes is None else 60 * minutes
            for minutes in (config.checkpoint.every_n_minutes, config.fault.max_time_minutes)
        )
        self._triggers = Triggers(directory.path.parent, every_s=every, max_time_s=most)
        self._copy = HostCopy()
        self._due = False
        self._failures = 0
        self._failed: Result | None = None
        self._saved_step: int | None = None
        self._validated = True
        self._validated_step: int | None = None
        self._validate_first = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the group that ranks agree in, and what writes on rank 0. Upload what an earlier attempt could not."""
        datamodule = _datamodule(trainer)
        if self._start.checkpoint is None and datamodule.next_batch:
            _set_epoch(trainer, datamodule.order.epochs_before(0))
        timeout = timedelta(seconds=self._config.fault.timeout_s)
        self._agreement = Agreement(world_size=trainer.world_size, timeout=timeout)
        if trainer.is_global_zero:
            remote = RemoteCheckpoints.of(self._config, self._directory.path.parent.name)
            self._saver = Saver(self._directory, Retention.of(self._config), remote)
            resumed = self._start.checkpoint
            if resumed is not None and resumed.parent.resolve() == self._directory.path.resolve():
                self._saver.upload(step_of(resumed), resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate first where the run was stopped between an epoch and its validation."""
        self._triggers.started()
        dealt_anew = isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.has_dealt_anew
        if self._start.changed or dealt_anew:
            _take_settings_over(trainer, self._config)
        if self._validate_first:
            _validate(trainer)  # it belongs to the epoch before the one that begins now
            self._validate_first = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Between two steps: save when it is time, and end when a signal has come."""
        assert isinstance(pl_module, EfficientNetModule)
        if not pl_module.ends_step(batch_idx):
            return
        step = trainer.global_step
        if self._finishes(trainer):
            return  # the end of training saves, and a signal changes nothing any more
        validates = (trainer.current_epoch + 1) % self._config.trainer.check_val_every_n_epoch == 0
        self._validated = not (validates and self._ends_epoch(trainer))
        if step % self._config.fault.check_every_n_steps == 0:
            self._heed(trainer)
        if (self._due or self._divides(step)) and not self._ends_epoch(trainer):
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """A signal does not wait for the end of a validation."""
        if trainer.state.fn == "fit" and not self._finishes(trainer):
            self._heed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch's validation is done."""
        self._validated = True
        self._validated_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's validation. A run's last step is validated wherever in an epoch it lies."""
        if self._finishes(trainer) and self._validated_step != trainer.global_step:
            _validate(trainer)
        due = (trainer.current_epoch + 1) % self._config.checkpoint.every_n_epochs == 0
        if due or self._due or self._finishes(trainer) or self._divides(trainer.global_step):
            self._save(trainer, last=self._finishes(trainer))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Finish the save that is under way: it may be the newest there will be."""
        if self._saver is not None and not self._saver.wait(self._config.fault.timeout_s):
            logger.warning("the last checkpoint was still being written when the process ended")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where a run was at its end already, all that is left may be an upload."""
        if self._agreement is not None:
            self._conclude(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add what is ours, and take out the loops' state."""
        del checkpoint["loops"]
        checkpoint[KEY] = {
            **self._facts,
            "format_version": FORMAT_VERSION,
            "position": _datamodule(trainer).position(trainer.global_step),
            "validated": self._validated,
            "config": self._config.model_dump(mode="json"),
        }

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's loops to the checkpoint's step.

        Raises:
            DataError: If the checkpoint names other data, unless `resume.allow_changes`.
        """
        ours, step = checkpoint[KEY], int(checkpoint["global_step"])
        datamodule = _datamodule(trainer)
        for note in datamodule.resume(ours["position"], step, allow_changes=self._config.resume.allow_changes):
            logger.warning("resume.allow_changes: %s", note)
        loop, epoch = trainer.fit_loop, datamodule.order.epochs_before(step)
        steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = step
        loop.epoch_loop._batches_that_stepped = step
        _set_epoch(trainer, epoch)
        self._saved_step = step
        self._validated = ours["validated"]
        self._validate_first = not self._validated
        logger.info("resumed at step %d, epoch %d", step, epoch)

    def _finishes(self, trainer: Trainer) -> bool:
        total = _datamodule(trainer).order.epoch_end(self._config.trainer.max_epochs)
        return trainer.global_step >= min(total, self._config.trainer.max_steps or total)

    def _ends_epoch(self, trainer: Trainer) -> bool:
        return trainer.global_step == _datamodule(trainer).order.epoch_end(trainer.current_epoch + 1)

    def _divides(self, step: int) -> bool:
        every = self._config.checkpoint.every_n_steps
        return every is not None and step % every == 0

    def _heed(self, trainer: Trainer) -> None:
        """Do what the ranks agree on: stop with a checkpoint, give up, or remember that a save is due."""
        assert self._agreement is not None
        agreed = self._agreement.ask(self._seen(trainer))
        self._due |= agreed.save
        if agreed.signal or agreed.stop or agreed.time:
            self._save(trainer, last=True)
            name = "a signal on another rank" if agreed.signal else STOP if agreed.stop else TIME_IS_UP
            name = self._flag.received.name if self._flag.received is not None else name
            self._triggers.stopped()
            raise Interrupted(f"{name} at step {trainer.global_step}: checkpointed")
        if agreed.failed:
            error = self._agreement.first(self._failed.error if self._failed is not None else None)
            if error is not None:  # none has succeeded since
                raise SaveFailedError(
                    f"{self._config.checkpoint.max_failures} saves in a row failed (checkpoint.max_failures), "
                    f"the last: {error}; the last good checkpoint is {self._directory.newest() or 'none'}"
                )

    def _seen(self, trainer: Trainer) -> Votes:
        """What this rank knows that the others may not."""
        signal = self._flag.received is not None
        if not trainer.is_global_zero:
            return Votes(signal=signal)
        self._take_results(trainer)
        due = self._triggers.save_is_due()
        failed = self._failures >= self._config.checkpoint.max_failures
        up = self._triggers.time_is_up
        return Votes(signal=signal, stop=self._triggers.stop, save=due, failed=failed, time=up)

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
            self._triggers.retry_in(pause_s)
            count = f"{self._failures} of {settings.max_failures} in a row"
            text = f"checkpoint of step {result.step} failed ({count}): {result.error}"
            logger.warning(text)
            log_row(trainer, {FAILURES: float(self._failures)})
            for tracker in trainer.loggers:
                if isinstance(tracker, SafeWandbLogger):
                    tracker.alert("checkpoint failed", text)

    def _save(self, trainer: Trainer, *, last: bool = False) -> None:
        """Collective: every rank takes part, rank 0 names the result. The ``last`` one must succeed."""
        self._due = False
        if self._saved_step != trainer.global_step:
            if last:
                self._await(trainer)
            begun = time.perf_counter()
            self._triggers.started()
            if isinstance(trainer.strategy, DeepSpeedStrategy):
                self._save_parts(trainer, begun, attempts=ATTEMPTS if last else 1)
            else:
                self._save_whole(trainer, begun)
            self._saved_step = trainer.global_step
            if self._saver is not None and not self._config.checkpoint.asynchronous:
                self._saver.wait()
        if last:
            self._conclude(trainer)

    def _save_whole(self, trainer: Trainer, begun: float) -> None:
        """One file, of which rank 0 has all; the other ranks give their part of what callbacks keep."""
        state = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if self._saver is None or not self._ready(trainer):
            return
        if self._config.checkpoint.asynchronous:
            state = self._copy.of(state)

        def write(directory: Path) -> None:
            CheckpointFile().save_checkpoint(state, directory / CHECKPOINT)

        self._saver.save(trainer.global_step, self._manifest(trainer, begun), write)

    def _save_parts(self, trainer: Trainer, begun: float, *, attempts: int) -> None:
        """DeepSpeed's files, which all ranks write while training waits; rank 0 names and uploads them later."""
        assert self._agreement is not None
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
            self._saver.save(trainer.global_step, self._manifest(trainer, begun), None)

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

    def _manifest(self, trainer: Trainer, begun: float) -> dict[str, Any]:
        step = trainer.global_step
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        return {
            "format_version": FORMAT_VERSION,
            "world_size": trainer.world_size,
            "config_hash": config_hash(self._config),
            "epoch": _datamodule(trainer).order.epochs_before(step),
            "validated": self._validated,
            "metrics": values if self._validated_step == step else {},
            "wandb_id": self._facts.get("wandb_id"),
            "resume": self._start.origin,
            "rollbacks": self._facts.get("rollbacks", 0),
            "config": self._config.model_dump(mode="json"),
            "stall_s": round(time.perf_counter() - begun, 4),
        }

    def _await(self, trainer: Trainer) -> None:
        """Collective: wait for what is under way on rank 0, however long, without a rank that gives up on it."""
        assert self._agreement is not None
        word: str | None = UNFINISHED
        while word is not None:
            self._alive()
            done = self._saver is None or self._saver.wait(min(self._config.fault.timeout_s / 2, WAIT_S))
            word = self._agreement.first(None if done else UNFINISHED)
        if self._saver is not None:
            self._take_results(trainer)

    def _conclude(self, trainer: Trainer) -> None:
        """Collective: as `_await`, and end with an error if the last save has failed."""
        assert self._agreement is not None
        self._await(trainer)
        error = self._agreement.first(self._failed.error if self._failed is not None else None)
        if error is not None:
            raise SaveFailedError(
                f"the checkpoint of step {trainer.global_step} is not where it should be: {error}; "
                f"the last good one is {self._directory.newest() or 'none'}"
            )


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


def _take_settings_over(trainer: Trainer, config: Config) -> None:
    """Give optimizer and schedule the settings of now, in place of those restored with their state."""
    # Of a network of its own: under ZeRO 3 the shapes of the present one no longer tell what is decayed.
    fresh = build_optimizer(build_network(config, restored=True), config.optimizer)
    order = _datamodule(trainer).order
    updates_per_epoch = order.samples / config.data.global_batch_size
    max_epochs = config.trainer.max_epochs
    as_new = build_scheduler(fresh, config.scheduler, max_epochs=max_epochs, updates_per_epoch=updates_per_epoch)
    for group, settings in zip(trainer.optimizers[0].param_groups, fresh.param_groups, strict=True):
        group.update({key: value for key, value in settings.items() if key != "params"})
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    schedule.load_state_dict(as_new.state_dict())
    schedule.step_update(num_updates=trainer.global_step + order.passed_over)


def _set_epoch(trainer: Trainer, epoch: int) -> None:
    """Have Lightning's loop of epochs go on there."""
    for progress in (trainer.fit_loop.epoch_progress.total, trainer.fit_loop.epoch_progress.current):
        for stage in ("ready", "started", "processed", "completed"):
            setattr(progress, stage, epoch)


def _validate(trainer: Trainer) -> None:
    """As Lightning does at the end of an epoch."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _datamodule(trainer: Trainer) -> ImageNetDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageNetDataModule)
    return datamodule
