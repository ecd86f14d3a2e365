"""Checkpoint directories on disk: written whole or not at all, verified by a manifest, never the last good one removed.

Order of a save: ``step-N.tmp/`` beside its final name, contents, fsync, manifest, fsync, rename, ``LATEST``.
One process writes at a time.
"""

import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.files import write_atomically
from configs.problems import DataError
from trainer.checkpoint_files import (
    MANIFEST,
    Unreadable,
    is_step_name,
    metric,
    refuse_newer_format,
    sha256,
    step_name,
    step_of,
    verify,
)
from trainer.logs import logger
from trainer.retention import Kept, Retention

LATEST = "LATEST"
QUARANTINE, SUPERSEDED = "quarantine", "superseded"
"""Folders beside checkpoints, where nothing is chosen or removed: for those that do not verify, and for those that are
later than a step to which a user went back."""
REASON = "reason.txt"
"""In each of these: why it is there."""


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
            files[str(file.relative_to(temporary))] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
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


def _files(path: Path) -> Iterator[Path]:
    return (file for file in sorted(path.rglob("*")) if file.is_file())


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
