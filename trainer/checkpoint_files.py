"""One checkpoint: the names of its files, whether it is whole, what it holds. Nothing in it is unpickled."""

import hashlib
import json
import math
import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from configs.files import read_json
from configs.problems import DataError
from trainer.consolidation import load_saved_weights

CHECKPOINT, MANIFEST = "checkpoint.ckpt", "manifest.json"
WEIGHTS = "weights.safetensors"
"""Beside a checkpoint in shards (ZeRO), its weights as a whole."""
FORMAT_VERSION = 2
"""Of checkpoints and manifests. 1, which is still read, has no configuration in its manifest, and less in its data
position."""
KEY = "effnet"
"""What is in a checkpoint beyond Lightning's."""


class CheckpointFile(TorchCheckpointIO):
    """Lightning's format, written straight to its place and read without unpickling code.

    Lightning writes to $TMPDIR and moves, which across file systems is a copy
    (https://github.com/Lightning-AI/pytorch-lightning/issues/19970); the directory's rename makes the save atomic here.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write and fsync."""
        with Path(path).open("wb") as file:
            torch.save(checkpoint, file)
            file.flush()
            os.fsync(file.fileno())

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = True) -> dict[str, Any]:
        """Read tensors and plain values.

        Raises:
            DataError: If the file holds anything else, such as code.
        """
        return load_content(Path(path))


class Unreadable(str):
    """What is wrong with a checkpoint that may be whole: it cannot be read now."""

    __slots__ = ()


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    try:
        return _fault(path)
    except OSError as error:
        return Unreadable(f"it cannot be read ({error})")


def _fault(path: Path) -> str | None:
    """What is wrong with a checkpoint directory.

    Raises:
        OSError: If it cannot be read.
    """
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = {name: (expected["bytes"], expected["sha256"]) for name, expected in manifest["files"].items()}
        step = int(manifest["step"])
    except (FileNotFoundError, NotADirectoryError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable manifest ({error})"
    if not files:
        return "its manifest names no files"
    if is_step_name(path) and path.name != step_name(step):
        return f"its manifest is of step {step}"
    for name, (size, checksum) in files.items():
        file = path / name
        try:
            present = file.stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return f"{name} is missing"
        if present != size:
            return f"{name} has {present} bytes instead of {size}"
        if sha256(file) != checksum:
            return f"{name} has another checksum than its manifest"
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """A checkpoint's manifest.

    Raises:
        DataError: If the checkpoint does not verify.
    """
    fault = verify(path)
    if fault is not None:
        raise DataError(f"checkpoint {path}: {fault}")
    manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    return manifest


def refuse_newer_format(path: Path) -> None:
    """Go on with no checkpoint that a newer effnet has written.

    Raises:
        DataError: If it is of a newer format.
    """
    version = read_json(path / MANIFEST).get("format_version", 1)
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise DataError(f"checkpoint {path} is of format {version}; this effnet knows up to {FORMAT_VERSION}")


def metric(path: Path, name: str) -> float | None:
    """What a checkpoint reached in the validation that it was saved after; None if there was none, or it is damaged."""
    try:
        return metric_of(json.loads((path / MANIFEST).read_text(encoding="utf-8")), name)
    except (OSError, ValueError):
        return None


def metric_of(manifest: Any, name: str) -> float | None:
    """As ``metric``, from the manifest itself."""
    metrics = manifest.get("metrics") if isinstance(manifest, dict) else None
    value = metrics.get(name) if isinstance(metrics, dict) else None
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def load_weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The network's weights in a checkpoint: ``raw``, and ``ema`` where an average was kept.

    Raises:
        DataError: If the checkpoint does not verify, or holds anything but tensors and plain values.
    """
    read_manifest(path)
    if (path / WEIGHTS).exists():
        return load_saved_weights(path / WEIGHTS)
    checkpoint = load_content(path / CHECKPOINT)
    prefix = "network."
    weights = {
        "raw": {key.removeprefix(prefix): v for key, v in checkpoint["state_dict"].items() if key.startswith(prefix)}
    }
    for state in checkpoint["callbacks"].values():
        if "network" in state:
            weights["ema"] = state["network"]
    return weights


def load_content(file: Path) -> dict[str, Any]:
    """Tensors and plain values of a ``checkpoint.ckpt``, on the CPU.

    Raises:
        DataError: If the file holds anything else, such as code.
    """
    try:
        checkpoint: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise DataError(f"checkpoint {file} holds more than tensors and plain values; code in it is not run") from None
    return checkpoint


def step_name(step: int) -> str:
    """Name of the directory of a step's checkpoint."""
    return f"step-{step:09d}"


def step_of(path: Path) -> int:
    """The step that a finished checkpoint's name says."""
    return int(path.name.removeprefix("step-"))


def is_step_name(path: Path) -> bool:
    """Whether a path is named as a checkpoint that has been saved whole, and not as what a user has made of one."""
    return re.fullmatch(r"step-\d+", path.name) is not None


def sha256(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
