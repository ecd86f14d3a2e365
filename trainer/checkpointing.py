"""When to save, what goes into a checkpoint beyond Lightning's, how a run goes on from one, and how signals end it."""

from datetime import timedelta
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import distributed

from configs.problems import DataError
from configs.run import config_hash
from configs.schema import Config
from datamodules.imagenet import ImageNetDataModule
from trainer.checkpoints import CHECKPOINT, WEIGHTS, CheckpointDirectory
from trainer.consolidation import save_weights
from trainer.logs import logger
from trainer.module import EfficientNetModule
from trainer.signals import StopFlag

FORMAT_VERSION = 1
KEY = "effnet"


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was checkpointed after a signal, on all ranks at the same step."""


class Agreement:
    """Lets all ranks find out at the same step that one of them was signalled.

    A MAX all-reduce on the CPU, begun at one step and read at the next: nobody waits for it, and the device is not
    involved.
    """

    def __init__(self, flag: StopFlag, *, world_size: int, timeout: timedelta) -> None:
        self._flag = flag
        self._group: distributed.ProcessGroup | None = None
        if world_size > 1:
            group = distributed.new_group(backend="gloo", timeout=timeout)
            assert isinstance(group, distributed.ProcessGroup)  # torch's -100 is for ranks left out
            self._group = group
        self._votes = torch.zeros(1, dtype=torch.int32)
        self._pending: distributed.Work | None = None

    def reached(self) -> bool:
        """Call on all ranks at the same step: whether a signal had arrived anywhere when this was called last."""
        if self._group is None:
            return self._flag.received is not None
        agreed = False
        if self._pending is not None:
            self._pending.wait()
            agreed = bool(self._votes)
        self._votes.fill_(int(self._flag.received is not None))
        self._pending = distributed.all_reduce(self._votes, distributed.ReduceOp.MAX, self._group, async_op=True)
        return agreed


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
    ) -> None:
        """Facts are plain values that go into every checkpoint: attempt, git SHA, W&B id."""
        self._config = config
        self._directory = directory
        self._flag = flag
        self._facts = facts
        self._agreement: Agreement | None = None
        self._saved_step: int | None = None
        self._validated = True
        self._validated_step: int | None = None
        self._validate_first = False

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the group that ranks agree in."""
        timeout = timedelta(seconds=self._config.fault.timeout_s)
        self._agreement = Agreement(self._flag, world_size=trainer.world_size, timeout=timeout)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validate first where the run was stopped between an epoch and its validation."""
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
            self._stop_if_agreed(trainer)
        every = self._config.checkpoint.every_n_steps
        if every is not None and step % every == 0 and not self._ends_epoch(trainer):
            self._save(trainer)

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any, **__: Any) -> None:
        """A signal does not wait for the end of a validation."""
        if trainer.state.fn == "fit" and not self._finishes(trainer):
            self._stop_if_agreed(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember that this epoch's validation is done."""
        self._validated = True
        self._validated_step = trainer.global_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after the epoch's validation. A run's last step is validated wherever in an epoch it lies."""
        if self._finishes(trainer) and self._validated_step != trainer.global_step:
            _validate(trainer)
        due = (trainer.current_epoch + 1) % self._config.checkpoint.every_n_epochs == 0
        every = self._config.checkpoint.every_n_steps
        if due or self._finishes(trainer) or (every is not None and trainer.global_step % every == 0):
            self._save(trainer)

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
            DataError: If the checkpoint is of a newer format, or names other data.
        """
        ours, step = checkpoint[KEY], int(checkpoint["global_step"])
        if ours["format_version"] > FORMAT_VERSION:
            raise DataError(f"checkpoint of format {ours['format_version']}; this effnet knows up to {FORMAT_VERSION}")
        datamodule = _datamodule(trainer)
        datamodule.resume(ours["position"], step)
        loop, epoch = trainer.fit_loop, datamodule.order.epochs_before(step)
        steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
        steps.ready = steps.completed = step
        loop.epoch_loop._batches_that_stepped = step
        for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
            for stage in ("ready", "started", "processed", "completed"):
                setattr(progress, stage, epoch)
        self._saved_step = step
        self._validated = ours["validated"]
        self._validate_first = not self._validated
        logger.info("resumed at step %d, epoch %d", step, epoch)

    def _finishes(self, trainer: Trainer) -> bool:
        total = _datamodule(trainer).order.epoch_end(self._config.trainer.max_epochs)
        return trainer.global_step >= min(total, self._config.trainer.max_steps or total)

    def _ends_epoch(self, trainer: Trainer) -> bool:
        return trainer.global_step == _datamodule(trainer).order.epoch_end(trainer.current_epoch + 1)

    def _stop_if_agreed(self, trainer: Trainer) -> None:
        assert self._agreement is not None
        if self._agreement.reached():
            self._save(trainer)
            trainer.strategy.barrier("interrupted")
            name = self._flag.received.name if self._flag.received is not None else "a signal on another rank"
            raise Interrupted(f"{name} at step {trainer.global_step}: checkpointed")

    def _save(self, trainer: Trainer) -> None:
        """Collective: every rank takes part, rank 0 names the result."""
        step = trainer.global_step
        if self._saved_step == step:
            return
        if trainer.is_global_zero:
            self._directory.begin(step)
        trainer.strategy.barrier("checkpoint begins")
        target = self._directory.temporary(step)
        trainer.save_checkpoint(target / CHECKPOINT)
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            module = trainer.lightning_module
            assert isinstance(module, EfficientNetModule)
            save_weights(trainer, module.network, module.average, target / WEIGHTS)
        if trainer.is_global_zero:
            manifest = {
                "format_version": FORMAT_VERSION,
                "world_size": trainer.world_size,
                "config_hash": config_hash(self._config),
                "epoch": _datamodule(trainer).order.epochs_before(step),
                "validated": self._validated,
                "resume": self._config.resume,
                "rollbacks": self._facts.get("rollbacks", 0),
            }
            path = self._directory.commit(step, manifest=manifest)
            self._directory.prune(self._config.checkpoint.keep_last, saved=path)
            logger.debug("saved %s", path)
        self._saved_step = step


def _validate(trainer: Trainer) -> None:
    """As Lightning does at the end of an epoch."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def _datamodule(trainer: Trainer) -> ImageNetDataModule:
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    assert isinstance(datamodule, ImageNetDataModule)
    return datamodule
