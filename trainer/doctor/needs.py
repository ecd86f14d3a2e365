"""What a run will need of each node: room for checkpoints, shared memory, images a second."""

import contextlib
import csv
import math
from pathlib import Path

import torch

from configs.schema import Config
from trainer.network import build_network, image_size

BYTES_PER_PARAMETER = 16
"""Of a checkpoint: weights, their average, and at most two states of the optimizer, in fp32."""
MEASURED = "measured in this run before"
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


def room_bytes(config: Config, folder: Path) -> int:
    """What checkpoints still take at most: those kept, less those that a folder holds, and the one that is written."""
    keep, size = config.checkpoint, checkpoint_bytes(config)
    # A run that goes on has filled the disk itself; the next checkpoint is written before another goes.
    there = sum(1 for each in folder.glob("step-*") if each.name.removeprefix("step-").isdecimal())
    return (max(keep.keep_last + (keep.keep_best or 0) - there, 0) + 1) * size


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
        return measured / world_size, MEASURED
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
    found = None
    with metrics_file.open(encoding="utf-8", newline="", errors="replace") as file, contextlib.suppress(csv.Error):
        for row in csv.DictReader(file):
            with contextlib.suppress(TypeError, ValueError):  # no value, or a line that kill -9 has cut
                rate = float(row.get("throughput/images_per_second") or "")
                found = rate if 0 < rate < math.inf else found
    return found
