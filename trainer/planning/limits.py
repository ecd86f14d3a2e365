"""What training will wait for: images a second that device, network, storage and CPUs each allow."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from configs.schema import Config
from trainer.planning.data import Samples
from trainer.planning.network import Traffic
from trainer.planning.time import DeviceTime

Limit = Literal["device", "network", "storage", "cpus"]


@dataclass(frozen=True, kw_only=True)
class Speed:
    """How fast a stage of training goes.

    Attributes:
        limits: Images a second of the whole run that each part allows by itself; only parts that are described.
        bottleneck: The part that allows the least.
        advice: What to do about it.
        step_s: Time of an optimizer step.
        images_per_s: Of the whole run.
        storage_bytes_per_s: What each node must read for that; samples repeated in a batch once, and then from memory.
        images_per_device_s: What the loaders of each device must deliver for that.
        cores_per_device: Cores that this takes on decoding, at `launch.hardware.images_per_core_s`; None with nvjpeg.
    """

    limits: dict[Limit, float]
    bottleneck: Limit
    advice: str
    step_s: float
    images_per_s: float
    storage_bytes_per_s: float
    images_per_device_s: float
    cores_per_device: float | None


def plan_speed(config: Config, device: DeviceTime, traffic: Traffic, samples: Samples, *, world_size: int) -> Speed:
    """Speed, from what each part takes.

    Args:
        config: Of the run.
        device: Time of a device by itself.
        traffic: Between devices.
        samples: Their size.
        world_size: Devices in all.
    """
    batch, hardware = config.data.global_batch_size, config.launch.hardware
    accumulate = batch // config.data.micro_batch_size // world_size
    working_s = accumulate * device.micro_batch_s + device.update_s
    waiting_s = traffic.exposed_s(
        micro_batch_s=device.micro_batch_s, forward_share=device.forward_share, accumulate=accumulate
    )
    limits: dict[Limit, float] = {"device": batch / working_s}
    repeats = config.data.augmentation.aug_repeats or 1
    if traffic.seconds:
        limits["network"] = batch / traffic.seconds
    limits |= data_limits(config, samples, world_size=world_size, repeats=repeats)
    step_s = with_loading(config, working_s + waiting_s, batch, limits)
    speed = batch / step_s
    bottleneck = min(limits, key=lambda part: limits[part])
    return Speed(
        limits=limits,
        bottleneck=bottleneck,
        advice=_advice(bottleneck, config, device),
        step_s=step_s,
        images_per_s=speed,
        storage_bytes_per_s=speed / repeats * samples.bytes_each / config.trainer.num_nodes,
        images_per_device_s=speed / world_size,
        cores_per_device=speed / world_size / hardware.images_per_core_s if config.data.decoder == "cpu" else None,
    )


def data_limits(config: Config, samples: Samples, *, world_size: int, repeats: int = 1) -> dict[Limit, float]:
    """Images a second of the whole run that storage and CPUs allow, where they limit it and are described.

    Of ``repeats`` of a sample in one batch, storage gives the first, and memory the others.
    """
    hardware, limits = config.launch.hardware, dict[Limit, float]()
    if hardware.storage_gb_per_s is not None:
        limits["storage"] = repeats * config.trainer.num_nodes * hardware.storage_gb_per_s * 1e9 / samples.bytes_each
    if config.data.decoder == "cpu":
        limits["cpus"] = world_size * loading_cores(config, world_size) * hardware.images_per_core_s
    return limits


def with_loading(config: Config, working_s: float, images: float, limits: Mapping[Limit, float]) -> float:
    """Seconds for ``images`` of the whole run, on which devices work that long once these are there.

    Loaders that work beside the device hide what they take; in its process, or on its core, they do not.
    """
    shares_cores = config.trainer.accelerator == "cpu" or config.data.num_workers == 0
    loading_s = images / limits.get("cpus", math.inf)
    loaded_s = working_s + loading_s if shares_cores else max(working_s, loading_s)
    return max(loaded_s, images / limits.get("storage", math.inf))


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
    if device.teacher_s > device.micro_batch_s / 2:
        return "the teacher's forward pass; a smaller distillation.teacher, or more devices"
    if device.bound_by == "starting operations":
        return "its host, which starts operations one by one; a larger data.micro_batch_size"
    mixed = ", or mixed precision" if config.trainer.precision == "32-true" else ""
    if device.bound_by == "arithmetic":
        return f"its arithmetic; more devices{mixed}"
    return f"its memory bandwidth, as is usual for EfficientNets; more devices{mixed}"
