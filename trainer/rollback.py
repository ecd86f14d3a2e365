"""Going back: which checkpoints a run may go on from after numbers went wrong, and past which data.

A rollback ends the attempt; the next one reads of it here. From the checkpoint before the first bad step on, the run
takes the global batches after the last bad one: with those in between, too, the same numbers would go wrong again.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from configs.files import write_atomically
from trainer.checkpoint_files import MANIFEST, is_step_name, step_of
from trainer.checkpoints import LATEST, CheckpointDirectory
from trainer.logs import logger


class RollBack(Exception):  # noqa: N818 - not an error
    """The attempt ends on all ranks at the same step, and the next one begins before the bad steps."""


@dataclass(frozen=True)
class Rollbacks:
    """All the times that a run went back up to now, oldest first: by itself, or because a user told it to (``resume``).

    Each has ``before_step``: what is later of the checkpoints that do not know of it is void. That of a rollback is the
    first step that went wrong, counted from 1; it also has ``next_batch``, the global batch after the last bad one, in
    batches of ``global_batch_size``. What a user goes back behind is forgotten with it: the bad data may be good now.
    """

    path: Path
    records: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> "Rollbacks":
        """Those in a run's file."""
        if not path.exists():
            return cls(path, ())
        return cls(path, tuple(json.loads(path.read_text(encoding="utf-8"))["rollbacks"]))

    @property
    def count(self) -> int:
        """Times that the run went back by itself, since a user last told it to."""
        return len(_by_itself(self.records))

    def add(self, *, before_step: int, next_batch: int, **facts: Any) -> None:
        """Write one more to the file."""
        self._write({"time": time.time(), "before_step": before_step, "next_batch": next_batch, **facts})

    def rewind(self, step: int, *, resume: str) -> "Rollbacks":
        """Write to the file that the run goes back to a step as ``resume`` says, once; returns what there is then."""
        last: dict[str, Any] = next((each for each in reversed(self.records) if "next_batch" not in each), {})
        if (last.get("before_step"), last.get("resume")) != (step + 1, resume):
            self._write({"time": time.time(), "before_step": step + 1, "resume": resume})
        return Rollbacks.read(self.path)

    def admit(self, path: Path, checkpoints: CheckpointDirectory) -> bool:
        """Whether the run may go on from a checkpoint: not if it lies past a rollback that it does not know of."""
        manifest = _manifest(path)
        later = self._since(path, checkpoints)
        return manifest is not None and all(int(manifest["step"]) < record["before_step"] for record in later)

    def admits(self, manifest: dict[str, Any]) -> bool:
        """As `admit`, by the manifest of one of the run's own checkpoints, wherever that is."""
        later = self.records[manifest.get("rollbacks", 0) :]
        return all(int(manifest["step"]) < record["before_step"] for record in later)

    def next_batch(
        self, path: Path | None, checkpoints: CheckpointDirectory, *, global_batch_size: int | None = None
    ) -> int | None:
        """The global batch with which to go on from a checkpoint, or from the start; None for the one in its turn.

        In batches of the size given. Where batches had another size when it was written down, none of the bad ones'
        samples come again.
        """

        def of(record: dict[str, Any]) -> int:
            next_batch, size = int(record["next_batch"]), int(record.get("global_batch_size", 0))
            return -(-next_batch * size // global_batch_size) if size and global_batch_size else next_batch

        return max(map(of, _by_itself(self._since(path, checkpoints))), default=None)

    def discard(self, checkpoints: CheckpointDirectory, *, chosen: Path | None) -> None:
        """Remove the checkpoints that are not admitted: they would pass for the run's newest.

        Those that a user has gone back behind, which are good, are set aside.
        """
        for path in _numbered(checkpoints):
            manifest = _manifest(path)
            if manifest is None or path == chosen or self.admit(path, checkpoints):
                continue
            void = [each for each in self._since(path, checkpoints) if int(manifest["step"]) >= each["before_step"]]
            if "next_batch" not in void[-1]:
                checkpoints.set_aside(path, after=void[-1]["before_step"] - 1)
                continue
            logger.warning("checkpoint %s is removed: the run went back to before it", path)
            path.rename(path.with_name(f"{path.name}.discarded.tmp"))
        checkpoints.sweep()
        latest = checkpoints.path / LATEST
        if chosen is not None and _is_in(chosen, checkpoints):
            checkpoints.point(step_of(chosen))
        elif latest.is_file() and not (checkpoints.path / latest.read_text(encoding="utf-8").strip()).exists():
            latest.unlink()

    def _since(self, path: Path | None, checkpoints: CheckpointDirectory) -> tuple[dict[str, Any], ...]:
        """Records after a checkpoint was written; all, for one of another run."""
        manifest = _manifest(path) if path is not None and _is_in(path, checkpoints) else None
        return self.records[manifest.get("rollbacks", 0) if manifest is not None else 0 :]

    def _write(self, added: dict[str, Any]) -> None:
        write_atomically(self.path, json.dumps({"rollbacks": [*self.records, added]}, indent=2) + "\n")


def _by_itself(records: tuple[dict[str, Any], ...]) -> list[dict[str, Any]]:
    """Rollbacks after the last time that a user went back."""
    return list(takewhile(lambda record: "next_batch" in record, reversed(records)))


def _manifest(path: Path) -> dict[str, Any] | None:
    try:
        manifest: dict[str, Any] = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return manifest


def _numbered(checkpoints: CheckpointDirectory) -> Iterator[Path]:
    return iter(sorted(filter(is_step_name, checkpoints.path.glob("step-*"))))


def _is_in(path: Path, checkpoints: CheckpointDirectory) -> bool:
    return path.parent.resolve() == checkpoints.path.resolve()  # the folder of a single one may lie elsewhere
