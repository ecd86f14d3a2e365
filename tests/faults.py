"""Training in which one rank fails on purpose, through the command line.

``python -m tests.faults SPEC fit …`` is ``effnet fit …`` whose ranks read from the JSON file SPEC what happens
(``kind``), on which ``ranks``, after how many optimizer ``steps``, and in which ``attempts``.
"""

import ctypes
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import torch

from datamodules.streaming.loaders import Batch
from tests import stand_in
from trainer.module import EfficientNetModule


def looping_on_purpose() -> None:
    while True:
        pass


def waiting_in_c_on_purpose(library: Any) -> None:
    """A mutex locked twice waits for ever, whatever signals come; what it was initialised with are zeros."""
    mutex = ctypes.create_string_buffer(128)
    library.pthread_mutex_lock(mutex)
    library.pthread_mutex_lock(mutex)


def fail(kind: str) -> None:
    if kind == "error":
        raise RuntimeError(f"broken on purpose at {id(kind):#x}")
    if kind == "memory":
        np.empty(1 << 50, np.uint8)
    if kind == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "loop":
        looping_on_purpose()
    if kind == "wait":
        waiting_in_c_on_purpose(ctypes.CDLL(None))
    if kind == "wait with the interpreter's lock":
        waiting_in_c_on_purpose(ctypes.PyDLL(None))
    if kind == "slow":
        time.sleep(10)


class Faulty(EfficientNetModule):
    spec: dict[str, Any]
    attempt: int

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        here = self.trainer.global_rank in self.spec["ranks"] and self.attempt in self.spec["attempts"]
        if here and self.trainer.global_step >= self.spec["steps"]:
            fail(self.spec["kind"])
        return super().training_step(batch, batch_idx)


def _faulty(spec: dict[str, Any]) -> type[Faulty]:
    Faulty.spec = spec
    (Faulty.attempt,) = (int(word.partition("=")[2]) for word in sys.argv if word.startswith("--attempt="))
    return Faulty


if __name__ == "__main__":
    stand_in.main("tests.faults", _faulty)
