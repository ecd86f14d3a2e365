"""DeepSpeed's checkpoint files: written so that no rank waits for another that could not write its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TAG = "checkpoint"
"""The folder in a checkpoint that Lightning has DeepSpeed write."""


def prepare(checkpoint: Path) -> None:
    """Make what rank 0 alone would make between two barriers: the folders, and the file that names the tag."""
    (checkpoint / TAG).mkdir(parents=True)
    (checkpoint / "latest").write_text(TAG, encoding="utf-8")


@contextmanager
def errors_kept(engine: Any) -> Iterator[list[Exception]]:
    """While DeepSpeed's engine saves: write files to disk, keep this rank's errors instead of raising them.

    DeepSpeed's last barrier comes after its writing: the other ranks would wait there for one that has raised. Out of
    the same reason rank 0 leaves out what it writes alone: the tag (see ``prepare``) and a script for converting parts,
    which weights.safetensors makes needless.
    """
    errors: list[Exception] = []
    writer = engine.checkpoint_engine
    original = writer.save

    def save(state_dict: dict[str, Any], path: str) -> None:
        try:
            original(state_dict, path)
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except (OSError, RuntimeError) as error:  # PyTorch's writer raises both
            errors.append(error)

    writer.save, writer.is_decoupled = save, lambda: True
    engine._copy_recovery_script = lambda _: None
    try:
        yield errors
    finally:
        del writer.save, writer.is_decoupled, engine._copy_recovery_script
