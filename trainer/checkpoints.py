"""Checkpoint directories on disk: written whole or not at all, verified by a manifest, never the last good one removed.

Order of a save: ``step-N.tmp/`` beside its final name, contents, fsync, manifest, fsync, rename, ``LATEST``.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from configs.problems import DataError
from configs.run import write_atomically
from trainer.logs import logger

CHECKPOINT, MANIFEST, LATEST = "checkpoint.ckpt", "manifest.json", "LATEST"


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
        """Read tensors and plain values."""
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        return checkpoint


@dataclass(frozen=True)
class CheckpointDirectory:
    """One run's ``checkpoints/``."""

    path: Path

    def begin(self, step: int) -> Path:
        """An empty temporary directory for a save; contents go to ``checkpoint.ckpt`` in it."""
        temporary = self.path / f"{_name(step)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        return temporary

    def commit(self, step: int, *, manifest: dict[str, Any]) -> Path:
        """Give a written save its name and make it the latest."""
        temporary, final = self.path / f"{_name(step)}.tmp", self.path / _name(step)
        files = {}
        for file in _files(temporary):
            _fsync(file)
            files[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        write_atomically(temporary / MANIFEST, json.dumps({**manifest, "step": step, "files": files}, indent=2) + "\n")
        _fsync(temporary)
        replaced = self.path / f"{final.name}.replaced.tmp"
        if final.exists():  # it did not verify, or this save would not have been
            final.rename(replaced)
        temporary.rename(final)
        _fsync(self.path)
        shutil.rmtree(replaced, ignore_errors=True)
        write_atomically(self.path / LATEST, final.name + "\n")
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; what is passed over is logged with the reason."""
        for path in sorted(self.path.glob("step-*"), reverse=True):
            if path.suffix == ".tmp":
                continue
            fault = verify(path)
            if fault is None:
                return path
            logger.warning("checkpoint %s is passed over: %s", path, fault)
        return None

    def prune(self, keep_last: int) -> None:
        """Remove all but the newest ``keep_last``."""
        finished = sorted(p for p in self.path.glob("step-*") if p.suffix != ".tmp")
        for path in finished[: max(len(finished) - keep_last, 0)]:
            shutil.rmtree(path)


def verify(path: Path) -> str | None:
    """What is wrong with a checkpoint directory, or None."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"no readable manifest ({error})"
    for name, expected in files:
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
        if _sha256(file) != expected["sha256"]:
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


def load_weights(path: Path) -> dict[str, dict[str, torch.Tensor]]:
    """The network's weights in a checkpoint: ``raw``, and ``ema`` where an average was kept.

    Raises:
        DataError: If the checkpoint does not verify, or is DeepSpeed's.
    """
    read_manifest(path)
    if (path / CHECKPOINT).is_dir():
        raise DataError(f"checkpoint {path} is DeepSpeed's, in shards: only single-file ones are read so far")
    checkpoint = torch.load(path / CHECKPOINT, map_location="cpu", weights_only=True)
    prefix = "network."
    weights = {
        "raw": {key.removeprefix(prefix): v for key, v in checkpoint["state_dict"].items() if key.startswith(prefix)}
    }
    for state in checkpoint["callbacks"].values():
        if "network" in state:
            weights["ema"] = state["network"]
    return weights


def _name(step: int) -> str:
    return f"step-{step:09d}"


def _files(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("*")) if file.is_file())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
