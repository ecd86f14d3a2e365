"""Optimizer and learning-rate schedule, both timm's, from the configuration."""

import difflib
from typing import Any

from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn
from torch.optim import Optimizer

from configs import schema
from configs.problems import ConfigError, Problem, shown
from trainer.plateau import PlateauScheduler


def build_optimizer(network: nn.Module, optimizer: schema.Optimizer) -> Optimizer:
    """Timm's optimizer; biases and BatchNorm parameters are not decayed.

    Raises:
        ConfigError: If timm has no such optimizer, it cannot run here, or it does not take one of `optimizer.kwargs`.
    """
    _check_optimizer(optimizer)
    try:
        built: Optimizer = create_optimizer_v2(
            network,
            opt=optimizer.opt,
            lr=optimizer.lr,
            weight_decay=optimizer.weight_decay,
            momentum=optimizer.momentum,
            layer_decay=optimizer.layer_decay,
            **optimizer.kwargs,
        )
    # timm asserts that there is a CUDA device where its package for an optimizer needs one.
    except (AssertionError, ImportError) as error:
        raise ConfigError(
            [Problem(key="optimizer.opt", received=shown(optimizer.opt), accepted=f"one that runs here ({error})")]
        ) from None
    except (TypeError, ValueError) as error:
        accepted = f"arguments of {optimizer.opt} ({error})"
        raise ConfigError(
            [Problem(key="optimizer.kwargs", received=shown(optimizer.kwargs), accepted=accepted)]
        ) from None
    return built


def _check_optimizer(optimizer: schema.Optimizer) -> None:
    """Refuse what timm would not know, would read as something else, or would leave out in silence.

    Raises:
        ConfigError: With the names that are close.
    """
    name, known = optimizer.opt.lower(), list_optimizers()
    if name.removeprefix("lookahead_") not in known:
        close = difflib.get_close_matches(name, known, n=3)
        accepted = f"did you mean {' or '.join(close)}?" if close else f"one of timm's: {', '.join(known)}"
        raise ConfigError([Problem(key="optimizer.opt", received=shown(optimizer.opt), accepted=accepted)])
    info = get_optimizer_info(name.removeprefix("lookahead_"))
    if info.second_order:
        accepted = "an optimizer that needs no second derivatives"
        raise ConfigError([Problem(key="optimizer.opt", received=shown(optimizer.opt), accepted=accepted)])
    unused = [key for key in ("eps", "betas") if key in optimizer.kwargs and not getattr(info, f"has_{key}")]
    if unused:
        accepted = f"arguments of {optimizer.opt}, which has no {' and no '.join(unused)}"
        raise ConfigError([Problem(key="optimizer.kwargs", received=shown(optimizer.kwargs), accepted=accepted)])


def build_scheduler(
    optimizer: Optimizer, scheduler: schema.Scheduler, *, max_epochs: int, updates_per_epoch: float
) -> Scheduler:
    """Timm's schedule, a function of the number of optimizer steps alone, or a PlateauScheduler.

    Args:
        optimizer: Whose learning rates it sets.
        scheduler: Shape, warm-up and decay, in epochs.
        max_epochs: Epochs that it spans.
        updates_per_epoch: Optimizer steps in an epoch; a fraction where a batch spans two epochs.

    Raises:
        ConfigError: If the epochs are too few steps for what it is to do in them.
    """
    if scheduler.sched == "plateau":
        return PlateauScheduler(optimizer, scheduler, warmup_t=scheduler.warmup_epochs * updates_per_epoch)
    optional: dict[str, Any] = {**scheduler.kwargs}
    for name in ("decay_epochs", "decay_rate"):
        if getattr(scheduler, name) is not None:
            optional[name] = getattr(scheduler, name)
    if scheduler.decay_milestones:
        optional["decay_milestones"] = scheduler.decay_milestones
    try:
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
    except ValueError as error:
        accepted = f"a schedule that has room in {max_epochs} epochs of {updates_per_epoch:g} steps ({error})"
        raise ConfigError([Problem(key="scheduler.sched", received=scheduler.sched, accepted=accepted)]) from None
    assert isinstance(built, Scheduler)
    built.step_update(0)
    return built
