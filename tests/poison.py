"""Training in which some samples turn numbers into NaN, in this process or through the command line.

``python -m tests.poison SPEC fit …`` is ``effnet fit …`` whose ranks read from the JSON file SPEC which ``samples`` are
poison, and before which step ``kill_at`` the process of rank ``kill_rank`` is killed.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from datamodules.streaming.loaders import Batch
from trainer.module import EfficientNetModule


class Poisoned(EfficientNetModule):
    """The images of some samples are NaN after normalisation. Notes down what it was given."""

    samples: tuple[int, ...] = ()
    kill_at: int | None = None
    kill_rank = 0
    seen: list[tuple[int, list[int]]]
    _poison: torch.Tensor | None = None

    def on_fit_start(self) -> None:
        type(self).seen = []
        super().on_fit_start()

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        step = self.trainer.global_step
        if step == self.kill_at and self.trainer.global_rank == self.kill_rank:
            os.kill(os.getpid(), signal.SIGKILL)
        self.seen.append((step, batch.samples.tolist()))
        self._poison = torch.isin(batch.samples, torch.tensor(self.samples, dtype=torch.int64))
        loss = super().training_step(batch, batch_idx)
        self._poison = None
        return loss

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        normalised = super().normalise(images)
        if self._poison is not None:
            normalised[self._poison] = torch.nan
        return normalised


def _rank(spec: Path) -> int:
    import trainer.__main__
    import trainer.assembly

    read: dict[str, Any] = json.loads(spec.read_text())
    Poisoned.samples = tuple(read["samples"])
    Poisoned.kill_at, Poisoned.kill_rank = read.get("kill_at"), read.get("kill_rank", 0)
    trainer.assembly.EfficientNetModule = Poisoned  # type: ignore[misc]
    return trainer.__main__.main()


def _launch(spec: Path) -> None:
    import launch.attempts
    import launch.cli

    plain = launch.attempts.trainer_command

    def poisoned(*arguments: str, devices: int) -> list[str]:
        command = plain(*arguments, devices=devices)
        place = command.index("trainer")
        return [*command[:place], "tests.poison", str(spec), "rank", *command[place + 1 :]]

    launch.attempts.trainer_command = poisoned
    launch.cli.main()


if __name__ == "__main__":
    spec, role = Path(sys.argv[1]), sys.argv[2]
    if role == "rank":
        del sys.argv[1:3]
        code = _rank(spec)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    del sys.argv[1]
    _launch(spec)
