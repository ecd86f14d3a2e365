"""Rows of metrics: what each holds, and when the host reads them off the device."""

import math
import time
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from configs.problems import DataError
from configs.schema import Config

SUMS = "effnet_train_sums"
"""Key of a checkpoint: what each rank has summed since the last row."""


def log_row(trainer: Trainer, values: dict[str, float]) -> None:
    """Write one row to every logger, at the present optimizer step, with the axes that all rows share.

    ``epoch`` counts passes over the training samples, as a fraction, with those that a rollback passed over;
    ``samples_seen`` samples of all devices; ``attempt`` starts of the run.
    """
    datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
    order, step = datamodule.order, trainer.global_step
    passed = (step + order.passed_over) * datamodule.data.global_batch_size
    axes = {"samples_seen": datamodule.samples_seen(step), "epoch": passed / order.samples}
    for callback in _training_metrics(trainer):
        axes["attempt"] = callback.attempt
    for logger in trainer.loggers:
        logger.log_metrics({**values, **axes}, step=trainer.global_step)


class TrainingMetrics(Callback):
    """Every ``log_every_n_steps``, reads the sums kept on the device, over all ranks, and logs a row.

    Attributes:
        attempt: Number of this start of the run, from 0.
        last_row: The latest row, for progress bars.
    """

    def __init__(self, config: Config, *, attempt: int) -> None:
        self._config = config
        self.attempt = attempt
        self._last_step = 0
        self._last_time = 0.0
        self._waited_s = 0.0
        self._bad, self._seen = 0, 0.0
        self._restored: torch.Tensor | None = None
        self.last_row: dict[str, float] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; go on with the sums that the last attempt had not logged."""
        if self._restored is not None:
            same = len(self._restored) == trainer.world_size
            sums = self._restored[trainer.global_rank] if same else self._restored.sum(0)
            if same or trainer.is_global_zero:
                assert isinstance(pl_module.train_sums, torch.Tensor)
                pl_module.train_sums.copy_(sums)
            self._restored = None
        self._last_step, self._last_time = trainer.global_step, time.monotonic()
        self._waited_s = _waited_s(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when it is time."""
        step = trainer.global_step
        if step == self._last_step or step % self._config.trainer.log_every_n_steps:
            return
        sums, skipped = pl_module.train_sums, pl_module.skipped_steps
        assert isinstance(sums, torch.Tensor)
        assert isinstance(skipped, int)
        # One place for each rank: in the sum over the ranks, all of them can be read.
        waits = sums.new_zeros(trainer.world_size, dtype=torch.double)
        waits[trainer.global_rank] = _waited_s(trainer) - self._waited_s
        reduced = trainer.strategy.reduce(torch.cat([sums.double(), waits]), reduce_op="sum")
        assert isinstance(reduced, torch.Tensor)
        loss, correct, samples, substituted, *waited_s = reduced.tolist()
        sums.zero_()
        self._count_bad(trainer, int(substituted), samples)
        elapsed = time.monotonic() - self._last_time
        images = (step - self._last_step) * self._config.data.global_batch_size
        group = trainer.optimizers[0].param_groups[0]  # with optimizer.layer_decay, the first layer's
        self.last_row = {
            "train/loss": loss / samples if samples else math.nan,
            "train/top1": correct / samples if samples else math.nan,
            "train/skipped_steps": float(skipped),
            "data/bad_samples": float(self._bad),
            "lr": group["lr"] / group.get("lr_scale", 1.0),
            "throughput/images_per_second": images / elapsed,
            # Of the rank that waited longest, for which the others then wait.
            "throughput/data_wait_share": min(max(waited_s) / elapsed, 1.0),
        }
        log_row(trainer, self.last_row)
        self._last_step, self._last_time = step, time.monotonic()
        self._waited_s = _waited_s(trainer)

    def _count_bad(self, trainer: Trainer, substituted: int, samples: float) -> None:
        """Stop when more samples of the run could not be read than ``data.max_bad_fraction`` allows."""
        self._bad += substituted
        self._seen += samples
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        allowed = self._config.data.max_bad_fraction * max(self._seen, datamodule.order.samples)
        if self._bad > allowed:
            raise DataError(
                f"{self._bad} images could not be read, data.max_bad_fraction = {self._config.data.max_bad_fraction} "
                f"allows {allowed:.1f}: the ranks' logs name them"
            )

    def state_dict(self) -> dict[str, Any]:
        """How many samples could not be read, of how many."""
        return {"bad": self._bad, "seen": self._seen}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._bad, self._seen = state_dict["bad"], state_dict["seen"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the sums of a row that is not due yet, of every rank."""
        sums = pl_module.train_sums
        assert isinstance(sums, torch.Tensor)
        gathered = trainer.strategy.all_gather(sums)
        checkpoint[SUMS] = gathered.reshape(-1, len(sums)).cpu()

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Take them over when training starts."""
        self._restored = checkpoint.get(SUMS)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation does not count as time of training."""
        self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the pause off the clock."""
        self._last_time += time.monotonic() - self._paused


def _waited_s(trainer: Trainer) -> float:
    """For batches, on this rank."""
    waited_s = trainer.datamodule.waited_s  # type: ignore[attr-defined]
    assert isinstance(waited_s, float)
    return waited_s


def _training_metrics(trainer: Trainer) -> list[TrainingMetrics]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, TrainingMetrics)]
