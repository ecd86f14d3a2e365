"""Rows of metrics: what each holds, and when the host reads them off the device."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch.optim import Optimizer

from configs.problems import DataError
from configs.schema import Config
from trainer.gauges import (
    Since,
    Utilisation,
    device_memory,
    gradient_norm,
    learning_rates,
    loss_scale,
    percentile,
    zero_gradient_norm,
)
from trainer.logs import logger as log
from trainer.row_parts import RowPart, RowParts
from trainer.tracking import alert

SUMS = "effnet_train_sums"
"""Key of a checkpoint: what each rank has summed since the last row."""
STALLED_ROWS = 3
"""Rows in a row with too long a wait for data: a slow start is none."""


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

    def __init__(
        self,
        config: Config,
        *,
        attempt: int,
        stalled_s: Callable[[], float] = lambda: 0.0,
        ema_decay: Callable[[int], float] | None = None,
        parts: Sequence[RowPart] = (),
    ) -> None:
        """Keep what rows are made from.

        Args:
            config: Of the attempt.
            attempt: Its number.
            stalled_s: Seconds for which this attempt's saves have held training up.
            ema_decay: Share of the old average that an optimizer step has kept, by its number; None without an average.
            parts: What rows have besides.
        """
        self._config = config
        self.attempt = attempt
        self._stalled_s = Since(stalled_s)
        self._ema_decay = ema_decay
        self._parts = RowParts(parts)
        self._utilisation = Utilisation(config)
        self._gradient_norm: torch.Tensor | None = None
        self._step_times: list[float] = []
        self._step_began = 0.0
        self._seen_step = 0
        self._stalled_rows, self._told_of_input = 0, False
        self._last_step = 0
        self._last_time = 0.0
        self._waited_s = 0.0
        self._bad, self._seen = 0, 0.0
        self._restored: torch.Tensor | None = None
        self.last_row: dict[str, float] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Before weights are dealt to devices."""
        network = pl_module.network
        assert isinstance(network, torch.nn.Module)
        self._utilisation.prepare(network)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; go on with the sums that the last attempt had not logged."""
        if self._restored is not None:
            same = len(self._restored) == trainer.world_size
            sums = self._restored[trainer.global_rank] if same else self._restored.sum(0)
            if same or trainer.is_global_zero:
                assert isinstance(pl_module.train_sums, torch.Tensor)
                pl_module.train_sums.copy_(sums)
            self._restored = None
        self._last_step = self._seen_step = trainer.global_step
        self._last_time = self._step_began = time.monotonic()
        self._waited_s = _waited_s(trainer)
        self._parts.start(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Measure the gradient of a step that a row follows, before it is clipped; the result stays on the device."""
        due = (trainer.global_step + 1) % self._config.trainer.log_every_n_steps == 0
        if due and not isinstance(trainer.strategy, DeepSpeedStrategy):
            self._gradient_norm = gradient_norm(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when it is time."""
        step, now = trainer.global_step, time.monotonic()
        if step == self._seen_step:
            return
        self._step_times.append(now - self._step_began)
        self._seen_step, self._step_began = step, now
        if step % self._config.trainer.log_every_n_steps == 0:
            self._write_row(trainer, pl_module, batch)

    def _write_row(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> None:
        """Collective: what all ranks have summed since the last row."""
        module: Any = pl_module
        module.settle()
        step, sums, skipped = trainer.global_step, pl_module.train_sums, pl_module.skipped_steps
        assert isinstance(sums, torch.Tensor)
        assert isinstance(skipped, int)
        measured, self._gradient_norm = self._gradient_norm, None
        norm = measured if measured is not None else zero_gradient_norm(trainer)
        # One place for each rank: in the sum over the ranks, all of them can be read.
        waits = sums.new_zeros(trainer.world_size, dtype=torch.double)
        waits[trainer.global_rank] = _waited_s(trainer) - self._waited_s
        norms = sums.new_full((1,), math.nan) if norm is None else norm.reshape(1)
        besides = torch.tensor(self._parts.values(trainer), dtype=torch.double, device=sums.device)
        own = torch.cat([sums.double(), norms.double(), waits, besides])
        reduced = trainer.strategy.reduce(own, reduce_op="sum")
        assert isinstance(reduced, torch.Tensor)
        loss, correct, samples, substituted, norm_of_all, *others = reduced.tolist()
        waited_s, others = others[: trainer.world_size], others[trainer.world_size :]
        sums.zero_()
        self._count_bad(trainer, int(substituted), samples)
        elapsed = time.monotonic() - self._last_time
        images_per_second = (step - self._last_step) * self._config.data.global_batch_size / elapsed
        on_each = images_per_second / trainer.world_size
        self.last_row = {
            "train/loss": loss / samples if samples else math.nan,
            "train/top1": correct / samples if samples else math.nan,
            "train/skipped_steps": float(skipped),
            **({} if norm is None else {"train/grad_norm": norm_of_all / trainer.world_size}),
            **({} if self._ema_decay is None else {"train/ema_decay": self._ema_decay(step)}),
            **loss_scale(trainer),
            "data/bad_samples": float(self._bad),
            **learning_rates(trainer.optimizers[0]),
            "throughput/images_per_second": images_per_second,
            "throughput/images_per_second_per_device": on_each,
            "throughput/step_time_p50_ms": 1000 * percentile(self._step_times, 0.5),
            "throughput/step_time_p95_ms": 1000 * percentile(self._step_times, 0.95),
            # Of the rank that waited longest, for which the others then wait.
            "throughput/data_wait_share": min(max(waited_s) / elapsed, 1.0),
            "checkpoint/stall_s": self._stalled_s(),
            **device_memory(pl_module.device),
            **self._utilisation_of(pl_module, batch, on_each),
            **self._parts.row(trainer, others),
        }
        log_row(trainer, self.last_row)
        self._watch_input(trainer, self.last_row["throughput/data_wait_share"])
        self._step_times.clear()
        self._last_step, self._last_time = step, time.monotonic()
        self._waited_s = _waited_s(trainer)

    def _watch_input(self, trainer: Trainer, share: float) -> None:
        """Say once that training waits for data."""
        bound = self._config.tracking.alert_data_wait_share
        self._stalled_rows = self._stalled_rows + 1 if bound is not None and share > bound else 0
        if self._stalled_rows == STALLED_ROWS and not self._told_of_input and trainer.is_global_zero:
            self._told_of_input = True
            text = (
                f"training has waited for data for {share:.0%} of its time up to step {trainer.global_step} "
                f"(tracking.alert_data_wait_share = {bound:g}): more data.num_workers, or see docs/performance.md"
            )
            log.warning(text)
            alert(trainer, "input has stalled", text)

    def _utilisation_of(self, pl_module: LightningModule, batch: Any, images_per_second: float) -> dict[str, float]:
        if pl_module.backbone_is_frozen:  # it has no backward pass
            return {}
        views = len(batch.images) / len(batch.targets)
        return self._utilisation.of(batch.images.shape, images_per_second=views * images_per_second)

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
        pause_s = time.monotonic() - self._paused
        self._last_time += pause_s
        self._step_began += pause_s


def _waited_s(trainer: Trainer) -> float:
    """For batches, on this rank."""
    waited_s = trainer.datamodule.waited_s  # type: ignore[attr-defined]
    assert isinstance(waited_s, float)
    return waited_s


def _training_metrics(trainer: Trainer) -> list[TrainingMetrics]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, TrainingMetrics)]
