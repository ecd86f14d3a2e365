"""How long a run takes in all its stages and validations, and what it reads and sends in that time."""

from collections.abc import Sequence
from dataclasses import dataclass

from configs.schema import Config
from trainer.planning.data import Samples
from trainer.planning.limits import Limit, Speed, data_limits, plan_speed, with_loading
from trainer.planning.network import Traffic
from trainer.planning.time import DeviceTime


@dataclass(frozen=True, kw_only=True)
class StageTime:
    """Of one stage of training.

    Attributes:
        device: What a device takes by itself.
        speed: Images a second, and what limits them.
        hours: Of all its steps.
        teacher_hours: Of these, what devices spend on the teacher's forward pass.
    """

    device: DeviceTime
    speed: Speed
    hours: float
    teacher_hours: float


@dataclass(frozen=True, kw_only=True)
class Duration:
    """Of a whole run.

    Attributes:
        bottleneck: What training waits for in most of its time.
        advice: What to do about it, in the longest of the stages that wait for it.
        training_hours: Of all steps.
        teacher_hours: Of these, what devices spend on the teacher's forward pass.
        validation_hours: Of all validations, raw and averaged weights; 0 where the number of samples is not known.
        device_hours: Of all devices, training and validation.
    """

    bottleneck: Limit
    advice: str
    training_hours: float
    teacher_hours: float
    validation_hours: float
    device_hours: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Of a whole run.

    Attributes:
        steps: Optimizer steps.
        epochs: Whole ones.
        validations: How often the validation split is evaluated.
        read_bytes: From storage by all nodes, training and validation samples.
        sent_bytes: By each device to others, in training.
    """

    steps: int
    epochs: int
    validations: int
    read_bytes: int
    sent_bytes: int


def plan_stage_time(
    config: Config, device: DeviceTime, traffic: Traffic, samples: Samples, *, steps: int, world_size: int
) -> StageTime:
    """Time of a stage of so many optimizer ``steps``; the other arguments are those of `plan_speed`."""
    speed = plan_speed(config, device, traffic, samples, world_size=world_size)
    accumulate = config.data.global_batch_size // config.data.micro_batch_size // world_size
    return StageTime(
        device=device,
        speed=speed,
        hours=steps * speed.step_s / 3600,
        teacher_hours=steps * accumulate * device.teacher_s / 3600,
    )


def plan_duration(
    config: Config,
    stages: Sequence[StageTime],
    samples: Samples,
    *,
    evaluation_s: float,
    validations: int,
    world_size: int,
) -> Duration:
    """Time of all stages and validations.

    Args:
        config: Of the run.
        stages: At least one.
        samples: How many there are, and their size.
        evaluation_s: Of a device, for a batch of `data.eval_batch_size` and all sets of weights.
        validations: Of the run.
        world_size: Devices in all.
    """
    waited: dict[Limit, float] = {}
    for stage in stages:
        waited[stage.speed.bottleneck] = waited.get(stage.speed.bottleneck, 0) + stage.hours
    bottleneck = max(waited, key=lambda part: waited[part])
    waiting = [stage for stage in stages if stage.speed.bottleneck == bottleneck]
    working_s = samples.validation / world_size / config.data.eval_batch_size * evaluation_s
    limits = data_limits(config, samples, world_size=world_size)
    validating = validations * with_loading(config, working_s, samples.validation, limits) / 3600
    training = sum(stage.hours for stage in stages)
    return Duration(
        bottleneck=bottleneck,
        advice=max(waiting, key=lambda stage: stage.hours).speed.advice,
        training_hours=training,
        teacher_hours=sum(stage.teacher_hours for stage in stages),
        validation_hours=validating,
        device_hours=world_size * (training + validating),
    )


def plan_totals(config: Config, samples: Samples, traffic: Traffic, *, steps: int) -> Totals:
    """What a run of so many optimizer ``steps`` reads and sends, at the ``traffic`` of each."""
    seen = steps * config.data.global_batch_size
    read = seen // (config.data.augmentation.aug_repeats or 1)
    epochs = seen // samples.training
    validations = epochs // config.trainer.check_val_every_n_epoch
    return Totals(
        steps=steps,
        epochs=epochs,
        validations=validations,
        read_bytes=round((read + validations * samples.validation) * samples.bytes_each),
        sent_bytes=steps * traffic.total_bytes,
    )
