"""A few steps of a training that is only tried: parts as `fit` builds them; no validation, logs and checkpoints."""

from collections.abc import Sequence

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from configs.schema import Config
from trainer.assembly import build_datamodule, build_module, build_trainer, resolve_accelerator
from trainer.batchnorm import BatchNormStatistics
from trainer.distillation import Distillation, build_teacher
from trainer.processes import Processes
from trainer.sync_batchnorm import synchronise_as_configured
from trainer.undoing import ChangesWithSteps, StepUndo, undoes


def first_phase(config: Config, *, steps: int) -> Config:
    """The configuration that trains ``steps`` steps and stays in its first phase throughout.

    A sweep that crosses the end of `model.freeze_backbone_epochs`, or of a stage of progressive learning, would show
    that as an effect of what it sweeps.

    Args:
        config: Of the run.
        steps: Optimizer steps. No epoch has less than one, so that they are as many epochs at most.
    """
    frozen = config.model.freeze_backbone_epochs
    stages = tuple(
        stage.model_copy(update={"until_epoch": stage.until_epoch + steps}) for stage in config.progressive.stages
    )
    trainer = {"max_steps": steps, "max_epochs": max(config.trainer.max_epochs, steps)}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"freeze_backbone_epochs": frozen + steps if frozen else 0}),
            "progressive": config.progressive.model_copy(update={"stages": stages}),
            "trainer": config.trainer.model_copy(update=trainer),
        }
    )


def last_phase(config: Config, *, steps: int) -> Config:
    """The configuration that trains ``steps`` steps of what needs most: all layers, the last stage's images."""
    trainer = {"max_steps": steps, "max_epochs": max(config.trainer.max_epochs, steps)}
    return config.model_copy(
        update={
            "model": config.model.model_copy(update={"freeze_backbone_epochs": 0}),
            "progressive": config.progressive.model_copy(update={"stages": ()}),
            "trainer": config.trainer.model_copy(update=trainer),
        }
    )


class TriedUndo(StepUndo):
    """Takes what undoing takes, memory and time; here nobody looks whether a step was bad."""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Keep what the optimizer has, and let the step count."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        self.finite = torch.ones((), dtype=torch.bool, device=pl_module.device)


def try_training(config: Config, processes: Processes, callbacks: Sequence[Callback]) -> None:
    """Train to `trainer.max_steps`, or until a callback stops it.

    Steps that are not finite are neither skipped nor written down: `NonFiniteSteps` would go back to a checkpoint.

    Raises:
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault.
    """
    accelerator = resolve_accelerator(config)
    datamodule = build_datamodule(config, accelerator)
    module = build_module(config)
    synchronise_as_configured(module.network, config, processes, accelerator)
    if config.distillation.teacher is not None:
        module.set_distillation(Distillation(config, *build_teacher(config)))
    statistics = BatchNormStatistics()
    changed = [each for each in callbacks if isinstance(each, ChangesWithSteps)]
    undo = [TriedUndo(statistics, *changed)] if undoes(config, accelerator) else []
    others = [each for each in callbacks if each not in changed]  # the last may time all that come before
    parts = [statistics, *changed, *undo, *others]
    trainer = build_trainer(config, processes, accelerator, callbacks=parts, loggers=[])
    trainer.limit_val_batches = 0
    trainer.fit(module, datamodule)
