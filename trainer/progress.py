"""What a person sees while a run trains or is validated: a bar on a terminal, lines elsewhere."""

import time
from contextlib import ExitStack
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from configs.schema import Config
from datamodules.bars import Advance, progress_on
from trainer.logs import logger
from trainer.metrics import TrainingMetrics
from trainer.module import EfficientNetModule

LINE_EVERY_S = 60.0
"""Seconds between two lines of an epoch, where there is no bar."""


class ProgressDisplay(Callback):
    """Epoch, loss, top-1, images/s, waiting for data, time left. Shows what was read off the device anyway."""

    def __init__(self, config: Config, console: Console, metrics: TrainingMetrics) -> None:
        self._config = config
        self._metrics = metrics
        self._console = console
        self._bar: Progress | None = None
        self._task = TaskID(0)
        self._said = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar at the step where this attempt begins."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        total = datamodule.order.epoch_end(self._config.trainer.max_epochs)
        total = min(total, self._config.trainer.max_steps or total)
        columns = (
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=self._console, expand=True, disable=not self._console.is_terminal)
        self._task = self._bar.add_task("train", total=total, completed=trainer.global_step, epoch="", numbers="")
        self._show(trainer)
        self._bar.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance after an optimizer step."""
        assert isinstance(pl_module, EfficientNetModule)
        if pl_module.ends_step(batch_idx):
            self._show(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the epoch has reached."""
        values, datamodule = trainer.callback_metrics, trainer.datamodule  # type: ignore[attr-defined]
        # Of the last step, not Lightning's: a resumed run may begin with the validation of the epoch before.
        epoch = datamodule.order.epochs_before(trainer.global_step - 1) + 1
        parts = [f"epoch {epoch}/{self._config.trainer.max_epochs}", f"step {trainer.global_step}"]
        row = self._metrics.last_row
        if row:
            parts += [f"loss {row['train/loss']:.3f}", f"{row['throughput/images_per_second']:,.0f} images/s"]
            parts += [f"data wait {row['throughput/data_wait_share']:.1%}"]
        parts += [f"{name} {float(values[name]):.4f}" for name in ("val/top1", "val/ema_top1") if name in values]
        logger.info(" · ".join(parts))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._stop()

    def _show(self, trainer: Trainer) -> None:
        if self._bar is None:
            return
        row = self._metrics.last_row
        numbers = ""
        if row:
            speed = f"{row['throughput/images_per_second']:,.0f} images/s"
            wait = f"data wait {row['throughput/data_wait_share']:.1%}"
            numbers = f"loss {row['train/loss']:.3f}  top-1 {row['train/top1']:.3f}  {speed}  {wait}"
        epoch = f"{min(trainer.current_epoch + 1, self._config.trainer.max_epochs)}/{self._config.trainer.max_epochs}"
        self._bar.update(self._task, completed=trainer.global_step, epoch=epoch, numbers=numbers)
        if self._console.is_terminal or not trainer.is_global_zero or time.monotonic() - self._said < LINE_EVERY_S:
            return
        self._said = time.monotonic()
        task = self._bar.tasks[self._task]
        parts = [f"epoch {epoch}", f"step {trainer.global_step:,} of {int(task.total or 0):,}", *numbers.split("  ")]
        logger.info(" · ".join(filter(None, parts)))

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class EvaluationProgress(Callback):
    """Images that all ranks have evaluated, as far as the first one can tell."""

    def __init__(self, console: Console) -> None:
        self._bar = progress_on(console)
        self._shown = ExitStack()
        self._advance: Advance = lambda _: None
        self._left = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Open the bar."""
        self._left = len(trainer.datamodule.val_index)  # type: ignore[attr-defined]
        if trainer.is_global_zero:
            self._advance = self._shown.enter_context(self._bar("validate", self._left))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        """The other ranks are about as far."""
        done = min(len(batch.targets) * trainer.world_size, self._left)
        self._left -= done
        self._advance(done)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the bar."""
        self._shown.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Close the bar."""
        self._shown.close()
