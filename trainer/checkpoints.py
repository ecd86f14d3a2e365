"""Checkpoint directories on disk: written whole or not at all, verified by a manifest, never the last good one removed.

Order of a save: ``step-N.tmp/`` beside its final name, contents, fsync, manifest, fsync, rename, ``LATEST``.
One process writes at a time.
"""

import hashlib
import json
import math
import os
import pickle
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric.plugins import TorchCheckpointIO

from configs.problems import DataError
from configs.run import read_json, write_atomically
from trainer.consolidation import load_saved_weights
from trainer.logs import logger
from trainer.retention import Kept, Retention

CHECKPOINT, MANIFEST, LATEST = "checkpoint.ckpt", "manifest.json", "LATEST"
WEIGHTS = "weights.safetensors"
"""Beside a checkpoint in shards (ZeRO), its weights as a whole."""
FORMAT_VERSION = 2
"""Of checkpoints and manifests. 1, which is still read, has no configuration in its manifest, and less in its data
position."""
KEY = "effnet"
"""What is in a checkpoint beyond Lightning's."""
QUARANTINE, SUPERSEDED = "quarantine", "superseded"
"""Folders beside checkpoints, where nothing is chosen or removed: for those that do not verify, and for those that are
later than a step to which a user went back."""
REASON = "reason.txt"
"""In each of these: why it is there."""


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


@dataclass(frozen=True)
class CheckpointDirectory:
    """One run's ``checkpoints/``."""

    path: Path

    def temporary(self, step: int) -> Path:
        """Where a save is written before it gets its name: ``checkpoint.ckpt`` in it, a file or a directory."""
        return self.path / f"{step_name(step)}.tmp"

    def named(self, step: int) -> Path:
        """Where the checkpoint of a step is, once it is whole."""
        return self.path / step_name(step)

    def begin(self, step: int) -> Path:
        """Make the temporary directory, empty. What saves left that were cut off goes first, and its room is free."""
        self.sweep()
        temporary = self.temporary(step)
        temporary.mkdir(parents=True)
        return temporary

    def sweep(self) -> None:
        """Remove what saves left that were cut off or failed."""
        for path in self.path.glob("step-*.tmp"):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    def commit(self, step: int, *, manifest: dict[str, Any]) -> Path:
        """Give a written save its name and make it the latest."""
        temporary = self.temporary(step)
        files = {}
        for file in _files(temporary):
            _fsync(file)
            files[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        write_atomically(temporary / MANIFEST, json.dumps({**manifest, "step": step, "files": files}, indent=2) + "\n")
        return self._publish(step)

    def adopt(self, step: int) -> Path:
        """As ``commit``, of a copy that has come from elsewhere with its manifest, and verifies."""
        for file in _files(self.temporary(step)):
            _fsync(file)
        return self._publish(step)

    def _publish(self, step: int) -> Path:
        temporary, final = self.temporary(step), self.named(step)
        for folder in (*(path for path in temporary.rglob("*") if path.is_dir()), temporary):
            _fsync(folder)
        replaced = self.path / f"{final.name}.replaced.tmp"
        if final.exists():  # it did not verify, or this save would not have been
            shutil.rmtree(replaced, ignore_errors=True)
            final.rename(replaced)
        temporary.rename(final)
        _fsync(self.path)
        shutil.rmtree(replaced, ignore_errors=True)
        return self.point(step)

    def point(self, step: int) -> Path:
        """Make the checkpoint of a step the latest."""
        final = self.named(step)
        write_atomically(self.path / LATEST, final.name + "\n")
        return final

    def newest(self) -> Path | None:
        """The newest checkpoint that verifies; what is passed over is logged with the reason."""
        return next(self.verified(), None)

    def verified(self, *, quarantine: bool = False) -> Iterator[Path]:
        """Checkpoints that verify, the newest first; what is passed over is logged with the reason.

        Args:
            quarantine: Move what is damaged out of the way. What only cannot be read now may be whole tomorrow.

        Raises:
            DataError: With ``quarantine``, if one is of a newer format, in which nothing can be said to be damaged.
        """
        for path in self._finished():
            if quarantine:
                refuse_newer_format(path)
            fault = verify(path)
            if fault is None:
                yield path
                continue
            moved = (
                self._put_away(path, QUARANTINE, fault) if quarantine and not isinstance(fault, Unreadable) else None
            )
            suffix = f"; it is in {moved} now" if moved is not None else ""
            logger.warning("checkpoint %s is passed over: %s%s", path, fault, suffix)

    def chosen(self, checkpoint: Path | None) -> Path:
        """The checkpoint that a user named, or the newest.

        Raises:
            DataError: If none was named and none verifies.
        """
        path = checkpoint or self.newest()
        if path is None:
            raise DataError(f"{self.path.parent} has no checkpoint that verifies")
        return path

    def prune(self, retention: Retention, *, saved: Path | None = None) -> None:
        """Remove what no rule keeps, and what saves that were cut off have left; never what was just ``saved``."""
        finished = {step_of(path): path for path in self._finished()}
        # What was just saved need not be read again to know that it is whole.
        good = next((step for step, path in finished.items() if path == saved or verify(path) is None), None)
        if good is not None:
            kept = [Kept(step, metric(path, retention.monitor)) for step, path in finished.items()]
            never = () if saved is None else (step_of(saved),)
            for step in retention.removable(kept, good=good, never=never):
                removed = finished[step].with_name(f"{step_name(step)}.removed.tmp")  # not half there, if cut off
                shutil.rmtree(removed, ignore_errors=True)
                finished[step].rename(removed)
        self.sweep()

    def supersede(self, after: int) -> None:
        """Move the checkpoints of later steps out of the way: they would pass for the newest."""
        for path in self._finished():
            if step_of(path) > after:
                self.set_aside(path, after=after)

    def set_aside(self, path: Path, *, after: int) -> None:
        """Move one checkpoint out of the way, of a run that goes back to step ``after``."""
        moved = self._put_away(path, SUPERSEDED, f"the run went back to step {after}")
        logger.info("checkpoint %s is in %s now: the run goes back to step %d", path, moved, after)

    def _put_away(self, path: Path, name: str, why: str) -> Path | None:
        """Move a checkpoint to a folder beside it, with the reason; returns where it is, or None if it must stay."""
        folder = self.path / name
        target, number = folder / path.name, 0
        try:
            folder.mkdir(exist_ok=True)
            while target.exists():
                number += 1
                target = folder / f"{path.name}-{number}"
            path.rename(target)
        except OSError as error:
            logger.warning("checkpoint %s cannot be moved to %s: %s", path, folder, error)
            return None
        with suppress(OSError):
            (target / REASON).write_text(f"{why}\nmoved {time.strftime('%Y-%m-%dT%H:%M:%S%z')}\n", encoding="utf-8")
        return target

    def _finished(self) -> list[Path]:
        """Checkpoints that have their name, the newest first."""
        return sorted(filter(is_step_name, self.path.glob("step-*")), key=step_of, reverse=True)


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
        if _sha256(file) != checksum:
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
