"""When to save, what goes into a checkpoint beyond Lightning's, and how signals and time limits end a run."""

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from configs.run import config_hash
from configs.schema import Config
from datamodules.imagenet import ImageNetDataModule
from trainer.agreement import Agreement, Votes
from trainer.checkpoint_files import FORMAT_VERSION, KEY, step_of
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.module import EfficientNetModule
from trainer.pace import Pace
from trainer.restoring import set_loops, take_settings_over
from trainer.resuming import START_ANEW, Start
from trainer.saves import Saves
from trainer.signals import StopFlag
from trainer.strategies import ZeroStrategy
from trainer.triggers import STOP, Triggers

TIME_IS_UP = "time is up (fault.max_time_minutes)"


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was checkpointed after a signal, on all ranks at the same step."""


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
        saved: Callable[[Path], None] = lambda _: None,
    ) -> None:
        """Facts are plain values that go into every checkpoint: attempt, git SHA, W&B id.

        While saves are waited for, which is no hang, ``alive`` is called now and then; ``saved`` is told of each
        checkpoint, as `Saver` says.
        """
        self._config = config
        self._directory = directory
        self._flag = flag
        self._facts = facts
        self._start = start
        self._alive = alive
        self._told = saved
        self._agreement: Agreement | None = None
        self._pace = Pace(config.fault.check_every_n_steps)
        self._saves: Saves | None = None
        every, most = (
            None if minutes is None else 60 * minutes
            for minutes in (config.checkpoint.every_n_minutes, config.fault.max_time_minutes)
        )
        self._triggers = Triggers(directory.path.parent, every_s=every, max_time_s=most)
        self._due = False
        self._resumed_step: int | None = None
        self._validated = True
        self._validated_step: int | None = None
        self._validate_first = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the group that ranks agree in, and what writes on rank 0. Upload what an earlier attempt could not."""
        datamodule = _datamodule(trainer)
        if self._start.checkpoint is None and datamodule.next_batch:
            set_loops(trainer, step=0, epoch=datamodule.order.epochs_before(0))
        timeout = timedelta(seconds=self._config.fault.timeout_s)
        self._agreement = Agreement(world_size=trainer.world_size, timeout=timeout)
        self._saves = Saves(
            self._config,
            self._directory,
            self._agreement,
            writes=trainer.is_global_zero,
            retry_in=self._triggers.retry_in,
            alive=self._alive,
            saved=self._told,
        )
        resumed = self._start.checkpoint
        if resumed is not None and resumed.parent.resolve() == self._directory.path.resolve():
            self._saves.upload(step_of(resumed), resumed)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate first where the run was stopped between an epoch and its validation."""
        assert self._saves is not None
        self._saves.saved_step = self._resumed_step
        self._triggers.started()
        dealt_anew = isinstance(trainer.strategy, ZeroStrategy) and trainer.strategy.has_dealt_anew
        if self._start.changed or dealt_anew:
            take_settings_over(trainer, self._config)
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
        if self._pace.asks(step):
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
        if self._saves is not None and not self._saves.wait(self._config.fault.timeout_s):
            logger.warning("the last checkpoint was still being written when the process ended")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Where a run was at its end already, all that is left may be an upload."""
        if self._saves is not None:
            self._saves.conclude(trainer)

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
        epoch = datamodule.order.epochs_before(step)
        set_loops(trainer, step=step, epoch=epoch)
        self._resumed_step = step
        self._validated = ours["validated"]
        self._validate_first = not self._validated
        logger.info("resumed at step %d, epoch %d", step, epoch)

    @property
    def stalled_s(self) -> float:
        """Seconds for which saves have held training up on this rank, in this attempt."""
        return self._saves.stalled_s if self._saves is not None else 0.0

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
        step = trainer.global_step
        agreed = self._agreement.ask(self._seen(trainer), step_s=self._pace.step_s(step))
        self._pace.agreed(step, slowest_step_s=self._agreement.slowest_step_s)
        self._due |= agreed.save
        if agreed.signal or agreed.stop or agreed.time:
            self._save(trainer, last=True)
            name = "a signal on another rank" if agreed.signal else STOP if agreed.stop else TIME_IS_UP
            name = self._flag.received.name if self._flag.received is not None else name
            self._triggers.stopped()
            raise Interrupted(f"{name} at step {step}: checkpointed")
        if agreed.failed:
            assert self._saves is not None
            self._saves.give_up()

    def _seen(self, trainer: Trainer) -> Votes:
        """What this rank knows that the others may not."""
        signal = self._flag.received is not None
        if not trainer.is_global_zero:
            return Votes(signal=signal)
        assert self._saves is not None
        failed = self._saves.failed_too_often(trainer)
        due, up = self._triggers.save_is_due(), self._triggers.time_is_up
        return Votes(signal=signal, stop=self._triggers.stop, save=due, failed=failed, time=up)

    def _save(self, trainer: Trainer, *, last: bool = False) -> None:
        """Collective. The ``last`` one must succeed."""
        assert self._saves is not None
        assert isinstance(trainer.lightning_module, EfficientNetModule)
        trainer.lightning_module.settle()
        self._due = False
        self._triggers.started()
        self._saves.save(trainer, self._manifest(trainer), last=last)

    def _manifest(self, trainer: Trainer) -> dict[str, Any]:
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
        }


def _validate(trainer: Trainer) -> None:
    """As Lightning does at the end of an epoch."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _datamodule(trainer: Trainer) -> ImageNetDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageNetDataModule)
    return datamodule
