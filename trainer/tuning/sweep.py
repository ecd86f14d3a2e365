"""The learning-rate sweep itself: a schedule that rises exponentially, and the loss of each step beside it.

Lightning's ``Tuner.lr_find`` is not used. It exchanges the schedule for one of torch's, which gives all parameter
groups one rate (layer-wise decay is lost) and has no ``step_update``; drops all callbacks; validates parts of the
split, which exact evaluation refuses; takes the last micro-batch's loss for that of an accumulated step; goes on after
NaN; saves a checkpoint. Since 2.5.3 its suggestion is the steepest slope over the rate itself, which favours the
smallest rates (https://github.com/Lightning-AI/pytorch-lightning/issues/21141). Lightning's Trainer runs the sweep.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from timm.scheduler.scheduler import Scheduler
from torch.optim import Optimizer

from trainer.module import EfficientNetModule

DIVERGED = 4.0
"""A running mean of the loss this many times its lowest ends the sweep: Lightning's ``early_stop_threshold``."""
MEMORY = 0.8
"""Share of a step before in that mean."""


class ExponentialRise(Scheduler):  # type: ignore[misc]
    """timm's kind of schedule: it keeps the factors (``lr_scale``) between parameter groups."""

    def __init__(self, optimizer: Optimizer, *, min_lr: float, max_lr: float, steps: int) -> None:
        """Begin at ``min_lr``; the last of ``steps`` steps has ``max_lr``."""
        self._min_lr, self._ratio, self._steps = min_lr, max_lr / min_lr, steps
        super().__init__(optimizer, param_group_field="lr", t_in_epochs=False)
        self.step_update(0)

    def rate(self, step: int) -> float:
        """Of the step after ``step`` steps."""
        return float(self._min_lr * self._ratio ** (step / (self._steps - 1)))

    def _get_lr(self, t: int) -> list[float]:
        return [self.rate(t)] * len(self.base_values)


class LearningRateSweep(Callback):
    """Takes the schedule's place, notes rate and loss of each optimizer step, and stops where the loss diverges.

    Attributes:
        lrs: Rate of each step; with layer-wise decay that of the head, which is `optimizer.lr`.
        losses: Mean over the step's global batch, before its update; all finite.
        diverged: Whether it stopped before ``max_lr``.
    """

    def __init__(self, *, min_lr: float, max_lr: float, steps: int, on_step: Callable[[int], object]) -> None:
        """Sweep from ``min_lr`` to ``max_lr``; ``on_step`` hears how many steps are done."""
        self._range = {"min_lr": min_lr, "max_lr": max_lr}
        self._steps, self._on_step = steps, on_step
        self._schedule: ExponentialRise | None = None
        self._mean, self._weight, self._lowest = 0.0, 0.0, math.inf
        self.lrs: list[float] = []
        self.losses: list[float] = []
        self.diverged = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Exchange the schedule."""
        (configured,) = trainer.lr_scheduler_configs
        optimizer: Any = configured.scheduler.optimizer
        self._schedule = ExponentialRise(optimizer, **self._range, steps=self._steps)
        configured.scheduler = self._schedule

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note a step's loss, over all micro-batches and ranks, which so agree on when to stop."""
        assert isinstance(pl_module, EfficientNetModule)
        assert self._schedule is not None
        if not pl_module.ends_step(batch_idx):
            return
        reduced = trainer.strategy.reduce(pl_module.losses.double().mean(), reduce_op="mean")
        assert isinstance(reduced, torch.Tensor)
        loss = reduced.item()
        if math.isfinite(loss):
            self.lrs.append(self._schedule.rate(len(self.lrs)))
            self.losses.append(loss)
        self.diverged = self._diverges(loss)
        if self.diverged:
            trainer.should_stop = True
        self._on_step(len(self.lrs))

    def _diverges(self, loss: float) -> bool:
        """By a running mean without bias to its beginning (Kingma and Ba, arXiv 1412.6980, section 3)."""
        if not math.isfinite(loss):
            return True
        self._mean = MEMORY * self._mean + (1 - MEMORY) * loss
        self._weight = MEMORY * self._weight + (1 - MEMORY)
        mean = self._mean / self._weight
        self._lowest = min(self._lowest, mean)
        return mean > DIVERGED * self._lowest
