"""What is set when a run goes on, beside the states that Lightning restores: its loops, and settings that changed."""

from typing import Any

from pytorch_lightning import Trainer

from configs.schema import Config
from trainer.network import build_network
from trainer.optimization import build_optimizer, build_scheduler
from trainer.plateau import PlateauScheduler


def set_loops(trainer: Trainer, *, step: int, epoch: int) -> None:
    """Have Lightning's loops stand after ``step`` optimizer steps, in ``epoch``."""
    loop = trainer.fit_loop
    steps = loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total
    steps.ready = steps.completed = step
    loop.epoch_loop._batches_that_stepped = step
    for progress in (loop.epoch_progress.total, loop.epoch_progress.current):
        for stage in ("ready", "started", "processed", "completed"):
            setattr(progress, stage, epoch)


def take_settings_over(trainer: Trainer, config: Config) -> None:
    """Give optimizer and schedule the settings of now, in place of those restored with their state."""
    # Of a network of its own: under ZeRO 3 the shapes of the present one no longer tell what is decayed.
    fresh = build_optimizer(build_network(config, restored=True), config.optimizer)
    order: Any = trainer.datamodule.order  # type: ignore[attr-defined]
    updates_per_epoch = order.samples / config.data.global_batch_size
    max_epochs = config.trainer.max_epochs
    as_new = build_scheduler(fresh, config.scheduler, max_epochs=max_epochs, updates_per_epoch=updates_per_epoch)
    for group, settings in zip(trainer.optimizers[0].param_groups, fresh.param_groups, strict=True):
        group.update({key: value for key, value in settings.items() if key != "params"})
    schedule: Any = trainer.lr_scheduler_configs[0].scheduler
    state = as_new.state_dict()
    if isinstance(schedule, PlateauScheduler) and isinstance(as_new, PlateauScheduler):
        state = schedule.with_validations_of_this(state)
    schedule.load_state_dict(state)
    schedule.step_update(num_updates=trainer.global_step + order.passed_over)
