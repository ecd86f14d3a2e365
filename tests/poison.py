"""Training in which some samples turn numbers into NaN, in this process or through the command line.

``python -m tests.poison SPEC fit …`` is ``effnet fit …`` whose ranks read from the JSON file SPEC which ``samples`` are
poison, before which step ``kill_at`` the process of rank ``kill_rank`` is killed, and whether they are to take the
device for one that runs ``behind`` the host.
"""

import os
import signal
from typing import Any

import torch

from datamodules.streaming.loaders import Batch
from tests import stand_in
from trainer import undoing
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
        self._poison = torch.isin(batch.samples, torch.tensor(self.samples, dtype=torch.int64).to(batch.samples))
        loss = super().training_step(batch, batch_idx)
        self._poison = None
        return loss

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        normalised = super().normalise(images)
        if self._poison is not None:
            normalised[self._poison] = torch.nan
        return normalised


def _poisoned(spec: dict[str, Any]) -> type[Poisoned]:
    Poisoned.samples = tuple(spec["samples"])
    if spec.get("behind"):
        undoing.runs_behind = lambda _: True
    Poisoned.kill_at, Poisoned.kill_rank = spec.get("kill_at"), spec.get("kill_rank", 0)
    return Poisoned


if __name__ == "__main__":
    stand_in.main("tests.poison", _poisoned)
