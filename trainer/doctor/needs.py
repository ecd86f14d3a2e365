"""What a run will need of each node: room for checkpoints, shared memory, images a second."""

import csv
from pathlib import Path

import torch

from configs.schema import Config
from trainer.network import build_network, image_size

BYTES_PER_PARAMETER = 16
"""Of a checkpoint: weights, their average, and at most two states of the optimizer, in fp32."""
SLOTS_IN_USE = 2
"""Batches of a worker that the training process looks at, beside those that wait."""
PUBLISHED = {
    ("A100", "efficientnet_b0", 224): 2489.0,
    ("A100", "efficientnet_b4", 380): 331.0,
    ("3090", "efficientnet_b0", 224): 1752.0,
}
"""Training images per second by device, model and image size: NVIDIA's DeepLearningExamples (PyTorch, mixed precision,
channels_last), and timm's for the RTX 3090."""


def checkpoint_bytes(config: Config) -> int:
    """Size of a checkpoint, by the network's parameters."""
    with torch.device("meta"):
        network = build_network(config, restored=True)
    return BYTES_PER_PARAMETER * sum(parameter.numel() for parameter in network.parameters())


def room_bytes(config: Config) -> int:
    """What checkpoints take at most: those kept, and the one that is written."""
    keep = config.checkpoint
    return (keep.keep_last + (keep.keep_best or 0) + 1) * checkpoint_bytes(config)


def shared_memory_bytes(config: Config, devices: int) -> int:
    """What the loaders of so many devices pass batches through."""
    data = config.data
    batch = data.micro_batch_size * image_size(config) ** 2 * (3 if config.model.in_chans < 4 else 4)
    return devices * data.num_workers * (data.prefetch_batches + SLOTS_IN_USE) * batch


def images_per_second(
    config: Config, *, gpu: str | None, metrics_file: Path, world_size: int
) -> tuple[float, str] | None:
    """Images that a device trains on per second, and on what that rests; None where nothing is known.

    Args:
        config: The run's.
        gpu: The device's name; None is a CPU.
        metrics_file: Of the run, which need not exist.
        world_size: Devices that the run has.
    """
    if config.doctor.images_per_s_per_device is not None:
        return config.doctor.images_per_s_per_device, "doctor.images_per_s_per_device"
    measured = _measured(metrics_file)
    if measured is not None:
        return measured / world_size, "measured in this run before"
    if gpu is None or config.width_and_depth is not None:
        return None
    name, size = config.model.name.removeprefix("tf_").partition(".")[0], image_size(config)
    for (device, model, side), rate in PUBLISHED.items():
        if device in gpu and (model, side) == (name, size):
            return rate, f"published for {device}"
    return None


def _measured(metrics_file: Path) -> float | None:
    """Images per second over all devices, as the run last logged it."""
    if not metrics_file.is_file():
        return None
    with metrics_file.open(encoding="utf-8", newline="") as file:
        rates = [
            row["throughput/images_per_second"]
            for row in csv.DictReader(file)
            if row.get("throughput/images_per_second")
        ]
    return float(rates[-1]) if rates else None
