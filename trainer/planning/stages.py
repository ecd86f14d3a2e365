"""The parts of a training whose steps differ: stages of progressive learning, and epochs of the head alone."""

from bisect import bisect_right
from dataclasses import dataclass

from configs.batches import epoch_end_step
from configs.progressive import stage_configs
from configs.schema import Config
from trainer.network import image_size


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Consecutive optimizer steps that are alike. All take the micro-batch of the configuration.

    Attributes:
        first_epoch: Counted from 0.
        until_epoch: The first that is no longer in it.
        image_size: Side of the images in pixels.
        frozen: Only the head trains.
        steps: Optimizer steps; a batch that spans two epochs belongs to the earlier.
    """

    first_epoch: int
    until_epoch: int
    image_size: int
    frozen: bool
    steps: int


def training_stages(config: Config, *, samples: int) -> tuple[Stage, ...]:
    """All stages of a run in which there are steps, in order.

    Args:
        config: Of the run.
        samples: Of an epoch.
    """
    trainer, ends = config.trainer, [stage.until_epoch for stage in config.progressive.stages]
    frozen = min(config.model.freeze_backbone_epochs, trainer.max_epochs)
    of_stages = stage_configs(config)
    stages, first_epoch, first_step = [], 0, 0
    for until in sorted({frozen, *ends, trainer.max_epochs} - {0}):
        step = epoch_end_step(until, samples=samples, global_batch_size=config.data.global_batch_size)
        step = min(step, trainer.max_steps or step)
        if step > first_step:
            stages.append(
                Stage(
                    first_epoch=first_epoch,
                    until_epoch=until,
                    image_size=image_size(of_stages[bisect_right(ends, first_epoch)]),
                    frozen=first_epoch < frozen,
                    steps=step - first_step,
                )
            )
        first_epoch, first_step = until, step
    return tuple(stages)
