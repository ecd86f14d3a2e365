"""What this machine has to train on, found out without torch."""

import itertools
import os
import re
import shutil
import subprocess

from configs.batches import largest_world_size
from configs.schema import Config

NAMES_A_DEVICE = re.compile(r"\d+|(GPU|MIG)-.+")
"""An entry of CUDA_VISIBLE_DEVICES: a number or a UUID. -1, and Slurm's NoDevFiles, mean none."""


def count_gpus() -> int:
    """CUDA devices that a process started here would see."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        # As CUDA does: what follows the first entry that names no device is not seen.
        return len(list(itertools.takewhile(NAMES_A_DEVICE.fullmatch, visible.replace(" ", "").split(","))))
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    except (subprocess.TimeoutExpired, OSError):
        return 0
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines()) if listed.returncode == 0 else 0


def count_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def resolve_devices(config: Config) -> int:
    """Processes to start here; for `auto`, as many as there are devices and the global batch can be dealt to."""
    if isinstance(config.trainer.devices, int):
        return config.trainer.devices
    if config.trainer.strategy == "single":
        return 1
    gpus = count_gpus() if config.trainer.accelerator != "cpu" else 0
    data = config.data
    return largest_world_size(
        global_batch_size=data.global_batch_size,
        micro_batch_size=data.micro_batch_size,
        available=gpus or count_cores(),
    )
