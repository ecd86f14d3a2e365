"""Going back: which checkpoints a run may go on from after numbers went wrong, and past which data.

A rollback ends the attempt; the next one reads of it here. From the checkpoint before the first bad step on, the run
takes the global batches after the last bad one: with those in between, too, the same numbers would go wrong again.
"""

import json
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.run import write_atomically
from trainer.checkpoints import LATEST, MANIFEST, CheckpointDirectory
from trainer.logs import logger


class RollBack(Exception):  # noqa: N818 - not an error
    """The attempt ends on all ranks at the same step, and the next one begins before the bad steps."""


@dataclass(frozen=True)
class Rollbacks:
    """All rollbacks of a run up to now, oldest first. Each has ``before_step`` and ``next_batch``.

    ``before_step`` is the first step that went wrong, counted from 1: checkpoints of earlier steps are good.
    ``next_batch`` is the global batch after the last bad one.
    """

    path: Path
    records: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> "Rollbacks":
        """Those in a run's file."""
        if not path.exists():
            return cls(path, ())
        return cls(path, tuple(json.loads(path.read_text(encoding="utf-8"))["rollbacks"]))

    def add(self, *, before_step: int, next_batch: int, **facts: Any) -> None:
        """Write one more to the file."""
        added = {"time": time.time(), "before_step": before_step, "next_batch": next_batch, **facts}
        text = json.dumps({"rollbacks": [*self.records, added]}, indent=2)
        write_atomically(self.path, text + "\n")

    def admit(self, path: Path, checkpoints: CheckpointDirectory) -> bool:
        """Whether the run may go on from a checkpoint: not if it lies past a rollback that it does not know of."""
        manifest = _manifest(path)
        later = self._since(path, checkpoints)
        return manifest is not None and all(int(manifest["step"]) < record["before_step"] for record in later)

    def next_batch(self, path: Path | None, checkpoints: CheckpointDirectory) -> int | None:
        """The global batch with which to go on from a checkpoint, or from the start; None for the one in its turn."""
        return max((record["next_batch"] for record in self._since(path, checkpoints)), default=None)

    def discard(self, checkpoints: CheckpointDirectory, *, chosen: Path | None) -> None:
        """Remove the checkpoints that are not admitted: they would pass for the run's newest."""
        discarded = [path for path in _numbered(checkpoints) if _manifest(path) and not self.admit(path, checkpoints)]
        for path in discarded:
            logger.warning("checkpoint %s is removed: the run went back to before it", path)
            temporary = path.with_name(f"{path.name}.discarded.tmp")
            shutil.rmtree(temporary, ignore_errors=True)
            path.rename(temporary)
            shutil.rmtree(temporary)
        latest = checkpoints.path / LATEST
        if discarded and chosen is not None and _is_in(chosen, checkpoints):
            write_atomically(latest, chosen.name + "\n")
        elif discarded:
            latest.unlink(missing_ok=True)

    def _since(self, path: Path | None, checkpoints: CheckpointDirectory) -> tuple[dict[str, Any], ...]:
        """Rollbacks after a checkpoint was written; all, for one of another run."""
        manifest = _manifest(path) if path is not None and _is_in(path, checkpoints) else None
        return self.records[manifest.get("rollbacks", 0) if manifest is not None else 0 :]


NO_ROLLBACKS = Rollbacks(Path(), ())


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest


def _numbered(checkpoints: CheckpointDirectory) -> Iterator[Path]:
    return (path for path in checkpoints.path.glob("step-*") if path.suffix != ".tmp")


def _is_in(path: Path, checkpoints: CheckpointDirectory) -> bool:
    return path.resolve().parent == checkpoints.path.resolve()
