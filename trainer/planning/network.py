"""What the devices of a run send to each other at each step, and how long that takes beside the backward pass."""

from dataclasses import dataclass
from typing import Final

from configs.schema import Config
from trainer.buckets import bucket_count

FP32: Final = 4


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """What each device sends in an optimizer step; it receives as much.

    Attributes:
        gradient_bytes: Of gradients, reduced over the devices.
        weight_bytes: Of weights that ZeRO gathers.
        statistics_bytes: Of BatchNorm's running statistics.
        layer_bytes: Of what BatchNorm's layers ask each other for (`trainer.sync_batchnorm`), which nothing hides.
        buckets: Parts in which DDP reduces the gradients, each as soon as the backward pass has them; 0 without DDP.
        link_gb_per_s: The slowest link on the way; None where the hardware does not say.
        seconds: All of it over that link; None as above. Latency is not counted.
    """

    gradient_bytes: int
    weight_bytes: int
    statistics_bytes: int
    layer_bytes: int
    buckets: int
    link_gb_per_s: float | None
    seconds: float | None

    @property
    def total_bytes(self) -> int:
        """All that a device sends."""
        return self.gradient_bytes + self.weight_bytes + self.statistics_bytes + self.layer_bytes

    def exposed_s(self, *, micro_batch_s: float, forward_share: float, accumulate: int) -> float:
        """The part of `seconds` in which devices wait: what the backward pass does not hide, and the last bucket."""
        if self.seconds is None or not self.total_bytes:
            return 0.0
        layers = self.seconds * self.layer_bytes / self.total_bytes
        others = self.seconds - layers
        if self.buckets:
            backward = micro_batch_s * (1 - forward_share)
            return layers + max(others / self.buckets, others - backward)
        gather = self.seconds * self.weight_bytes / self.total_bytes
        return layers + max(gather, others - accumulate * micro_batch_s)


def plan_traffic(
    config: Config, *, parameters: int, statistics_bytes: int, world_size: int, accumulate: int
) -> Traffic:
    """Traffic of a ring over all devices.

    An all-reduce passes 2 (n - 1) / n of the data through each of them, a reduce-scatter and an all-gather half of that
    (Patarasuk and Yuan, JPDC 2009).

    Args:
        config: Strategy, precision and `launch.hardware`.
        parameters: Of the network.
        statistics_bytes: Running means and variances in fp32.
        world_size: Devices in all.
        accumulate: Micro-batches of a device in a step.
    """
    half = (world_size - 1) / world_size
    stage = config.deepspeed.zero_stage or 0
    working = (2 if stage and config.trainer.precision != "32-true" else FP32) * parameters
    passes = accumulate if stage >= 2 else 1  # ZeRO 2 and 3 have no room to add gradients up before they are reduced
    sent = working // 2 if config.trainer.ddp_comm_hook is not None and not stage else working
    gradients = half * sent * passes * (1 if stage else 2)
    weights = half * working * {0: 0, 1: 1, 2: 1, 3: 2 * accumulate}[stage]
    # All ranks' means and variances forward, a sum over the ranks backward.
    layers = accumulate * (world_size - 1 + 2 * half) * statistics_bytes if config.trainer.sync_batchnorm else 0
    total = gradients + weights + 2 * half * statistics_bytes + layers
    link = _slowest_link(config)
    return Traffic(
        gradient_bytes=round(gradients),
        weight_bytes=round(weights),
        statistics_bytes=round(2 * half * statistics_bytes),
        layer_bytes=round(layers),
        buckets=bucket_count(working) if world_size > 1 and not stage else 0,
        link_gb_per_s=link,
        seconds=None if link is None and total else total / ((link or 1) * 1e9),
    )


def _slowest_link(config: Config) -> float | None:
    """Rings cross from node to node once for all devices of a node, so a node's link carries a device's traffic."""
    hardware, trainer = config.launch.hardware, config.trainer
    if trainer.num_nodes > 1 and hardware.node_link_gb_per_s is None:
        return None
    links = [hardware.device_link_gb_per_s if trainer.devices != 1 else None]
    links.append(hardware.node_link_gb_per_s if trainer.num_nodes > 1 else None)
    return min((link for link in links if link is not None), default=None)
