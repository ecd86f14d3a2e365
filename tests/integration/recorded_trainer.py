"""``python -m trainer``, with a note of each micro-batch's samples; started in its place by test_elastic.py.

EFFNET_RECORD names the folder of the notes, a file a process. EFFNET_STOP_AT is a step after which the last rank gets a
SIGTERM.
"""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from trainer.__main__ import main
from trainer.module import EfficientNetModule

step_without_note = EfficientNetModule.training_step


def step_with_note(module: EfficientNetModule, batch: Any, batch_idx: int) -> Any:
    rank, step = module.trainer.global_rank, module.trainer.global_step
    micro_batch = module.layout.micro_batch(global_rank=rank, batch_idx=batch_idx)
    note = {"step": step, "micro_batch": micro_batch, "samples": batch.samples.tolist()}
    with (Path(os.environ["EFFNET_RECORD"]) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(note) + "\n")
    if os.environ.get("EFFNET_STOP_AT") == str(step) and rank == module.trainer.world_size - 1:
        os.kill(os.getpid(), signal.SIGTERM)
    return step_without_note(module, batch, batch_idx)


EfficientNetModule.training_step = step_with_note  # type: ignore[method-assign]

if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
