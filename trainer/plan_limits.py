"""What a run will wait for: images a second that device, network, storage and CPUs each allow, and the time in all."""

import math
from dataclasses import dataclass
from typing import Literal

from configs.schema import Config
from trainer.plan_data import Samples
from trainer.plan_network import Traffic
from trainer.plan_time import DeviceTime

Limit = Literal["device", "network", "storage", "cpus"]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How fast a run goes and how long it takes.

    Attributes:
        limits: Images a second of the whole run that each part allows by itself; only parts that are described.
        bottleneck: The part that allows the least.
        advice: What to do about it.
        step_s: Time of an optimizer step.
        images_per_s: Of the whole run.
        storage_bytes_per_s: What each node must read for that.
        images_per_device_s: What the loaders of each device must deliver for that.
        cores_per_device: Cores that this takes on decoding, at `launch.hardware.images_per_core_s`; None with nvjpeg.
        training_hours: Of all steps.
        validation_hours: Of all validations, raw and averaged weights; 0 where the number of samples is not known.
        device_hours: Of all devices, training and validation.
    """

    limits: dict[Limit, float]
    bottleneck: Limit
    advice: str
    step_s: float
    images_per_s: float
    storage_bytes_per_s: float
    images_per_device_s: float
    cores_per_device: float | None
    training_hours: float
    validation_hours: float
    device_hours: float


def plan_duration(
    config: Config, device: DeviceTime, traffic: Traffic, samples: Samples, *, world_size: int, steps: int, epochs: int
) -> Duration:
    """Speed and time, from what each part takes.

    Args:
        config: Of the run.
        device: Time of a device by itself.
        traffic: Between devices.
        samples: How many there are, and their size.
        world_size: Devices in all.
        steps: Optimizer steps of the run.
        epochs: Epochs of the run, the last one perhaps in part.
    """
    batch, hardware = config.data.global_batch_size, config.launch.hardware
    accumulate = batch // config.data.micro_batch_size // world_size
    working_s = accumulate * device.micro_batch_s + device.update_s
    waiting_s = traffic.exposed_s(
        micro_batch_s=device.micro_batch_s, forward_share=device.forward_share, accumulate=accumulate
    )
    limits: dict[Limit, float] = {"device": batch / working_s}
    if traffic.seconds:
        limits["network"] = batch / traffic.seconds
    if hardware.storage_gb_per_s is not None:
        limits["storage"] = config.trainer.num_nodes * hardware.storage_gb_per_s * 1e9 / samples.bytes_each
    if config.data.decoder == "cpu":
        limits["cpus"] = world_size * loading_cores(config, world_size) * hardware.images_per_core_s
    step_s = working_s + waiting_s
    # Loaders that work beside the device hide what they take; in its process, or on its core, they do not.
    shares_cores = config.trainer.accelerator == "cpu" or config.data.num_workers == 0
    loading_s = batch / limits["cpus"] if "cpus" in limits else 0.0
    step_s = step_s + loading_s if shares_cores else max(step_s, loading_s)
    step_s = max(step_s, batch / limits.get("storage", math.inf))
    speed = batch / step_s
    bottleneck = min(limits, key=lambda part: limits[part])
    validated = (
        samples.validation * (2 if config.ema.enabled else 1) * (epochs // config.trainer.check_val_every_n_epoch)
    )
    validation_s = validated * device.micro_batch_s * device.forward_share / config.data.micro_batch_size / world_size
    return Duration(
        limits=limits,
        bottleneck=bottleneck,
        advice=_advice(bottleneck, config, device),
        step_s=step_s,
        images_per_s=speed,
        storage_bytes_per_s=speed * samples.bytes_each / config.trainer.num_nodes,
        images_per_device_s=speed / world_size,
        cores_per_device=speed / world_size / hardware.images_per_core_s if config.data.decoder == "cpu" else None,
        training_hours=steps * step_s / 3600,
        validation_hours=validation_s / 3600,
        device_hours=world_size * (steps * step_s + validation_s) / 3600,
    )


def loading_cores(config: Config, world_size: int) -> float:
    """Cores on which a device's loaders work: as many as there are workers, and no more than the node has for them."""
    cores, workers = config.launch.hardware.cores_per_node, max(config.data.num_workers, 1)
    if cores is None or config.trainer.accelerator == "cpu":
        return workers
    devices = world_size // config.trainer.num_nodes
    return max(min(workers, cores / devices - 1), min(1, cores / devices))


def _advice(bottleneck: Limit, config: Config, device: DeviceTime) -> str:
    if bottleneck == "cpus":
        slower = ", which is without auto_augment" if config.data.augmentation.auto_augment else ""
        more = "more data.num_workers and cores, data.decoder=nvjpeg on GPUs"
        return f"decoding{slower}; {more}, or smaller images in the shards (effnet shards build --resize)"
    if bottleneck == "storage":
        return "reading shards; copy them to local disks, or have smaller images in them (effnet shards build --resize)"
    if bottleneck == "network":
        return "sending gradients; a larger data.global_batch_size by accumulation, a faster link, or fewer nodes"
    if device.bound_by == "starting operations":
        return "its host, which starts operations one by one; a larger data.micro_batch_size"
    mixed = ", or mixed precision" if config.trainer.precision == "32-true" else ""
    if device.bound_by == "arithmetic":
        return f"its arithmetic; more devices{mixed}"
    return f"its memory bandwidth, as is usual for EfficientNets; more devices{mixed}"
