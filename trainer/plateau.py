"""The schedule that lowers the learning rate when validation has stopped to improve."""

from typing import Any

import torch
from timm.scheduler import StepLRScheduler
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from configs import schema

_KEPT = ("best", "num_bad_epochs", "cooldown_counter", "last_epoch")
"""What torch's ReduceLROnPlateau knows of the validations so far, beside the rate."""


class PlateauScheduler(StepLRScheduler):  # type: ignore[misc]
    """timm's warm-up and constant rate, times a factor that torch's ReduceLROnPlateau lowers.

    timm has one too, but it knows epochs alone, is to be removed, and keeps too little for a run that is resumed. Here
    the rate is a function of the number of steps and of the validations so far, all of which is in the state.
    Validations during the warm-up do not count.
    """

    def __init__(self, optimizer: Optimizer, scheduler: schema.Scheduler, *, warmup_t: float) -> None:
        """Begin with the factor 1.

        Args:
            optimizer: Whose learning rates it sets.
            scheduler: With `decay_rate`, `patience_validations`, the metric and the warm-up's and the lowest rate.
            warmup_t: Optimizer steps of the warm-up.
        """
        assert scheduler.decay_rate is not None
        super().__init__(
            optimizer,
            decay_t=1,
            decay_rate=1.0,
            warmup_t=warmup_t,
            warmup_lr_init=scheduler.warmup_lr,
            warmup_prefix=False,
            t_in_epochs=False,
        )
        self.lr_min = scheduler.min_lr
        self.steps = 0
        # Its own optimizer has one rate, which is the factor.
        self._plateau = ReduceLROnPlateau(
            SGD([torch.zeros(1)], lr=1.0),
            mode="min" if (scheduler.monitor or "").endswith("loss") else "max",
            factor=scheduler.decay_rate,
            patience=scheduler.patience_validations,
        )
        self.step_update(0)

    @property
    def factor(self) -> float:
        """Of the peak learning rate."""
        return float(self._plateau.optimizer.param_groups[0]["lr"])

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        """Set the rates of the step after ``num_updates``."""
        self.steps = num_updates
        super().step_update(num_updates, metric)

    def validated(self, metric: float) -> None:
        """Take a validation into account, from the next step on."""
        if self.steps >= self.warmup_t:
            self._plateau.step(metric)
            self.step_update(self.steps)

    def _get_lr(self, t: int) -> list[float]:
        rates: list[float] = super()._get_lr(t)
        if t < self.warmup_t:
            return rates
        return [max(rate * self.factor, min(rate, self.lr_min)) for rate in rates]

    def state_dict(self) -> dict[str, Any]:
        """Settings, number of steps, and what is known of the validations so far."""
        state = {key: value for key, value in super().state_dict().items() if key != "_plateau"}
        kept = {key: getattr(self._plateau, key) for key in _KEPT}
        return {**state, "validations": {**kept, "factor": self.factor}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`'s, with one's own factor of a decay and patience."""
        state = dict(state_dict)
        kept = state.pop("validations")
        self._plateau.optimizer.param_groups[0]["lr"] = kept["factor"]
        for key in _KEPT:
            setattr(self._plateau, key, kept[key])
        super().load_state_dict(state)

    def with_validations_of_this(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Another schedule's state with the validations of this one."""
        return {**state_dict, "validations": self.state_dict()["validations"]}
