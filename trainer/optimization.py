"""Optimizer and learning-rate schedule, both timm's, from the configuration."""

from typing import Any

from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from configs import schema
from configs.problems import ConfigError, Problem


def build_optimizer(network: nn.Module, optimizer: schema.Optimizer) -> Optimizer:
    """Timm's optimizer; biases and BatchNorm parameters are not decayed.

    Raises:
        ConfigError: If the optimizer does not take one of `optimizer.kwargs`.
    """
    try:
        built: Optimizer = create_optimizer_v2(
            network,
            opt=optimizer.opt,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            **optimizer.kwargs,
        )
    except (TypeError, ValueError) as error:
        raise ConfigError(
            [Problem(key="optimizer.kwargs", received=str(optimizer.kwargs), accepted=f"arguments of it ({error})")]
        ) from None
    return built


def build_scheduler(
    optimizer: Optimizer, scheduler: schema.Scheduler, *, max_epochs: int, updates_per_epoch: int
) -> Scheduler:
    """Timm's schedule, a function of the number of optimizer steps alone."""
    optional: dict[str, Any] = {}
    if scheduler.decay_epochs is not None:
        optional["decay_epochs"] = scheduler.decay_epochs
    if scheduler.decay_rate is not None:
        optional["decay_rate"] = scheduler.decay_rate
    built, _ = create_scheduler_v2(
        optimizer,
        sched=scheduler.sched,
        num_epochs=max_epochs,
        warmup_epochs=scheduler.warmup_epochs,
        warmup_lr=scheduler.warmup_lr,
        min_lr=scheduler.min_lr,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
        **optional,
    )
    assert isinstance(built, Scheduler)
    built.step_update(0)
    return built
