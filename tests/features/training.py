"""Training runs of four steps, and going on from the third, in one process group for all of them.

``python -m tests.features.training RUNS.json`` is a rank of it; the file names runs that have not begun.
"""

import json
import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch
from rich.console import Console

from configs.run import RunDirectory
from tests.features.catalogue import STEPS
from tests.unit.trainer.runs import as_killed_after
from trainer import fit
from trainer.processes import Processes
from trainer.signals import StopFlag

RESUMED = "resumed"
"""Beside a run, the folder of the one that goes on from its third step."""


def train_and_go_on(run: RunDirectory, processes: Processes, *, turn: int = 0) -> None:
    """Train a run to its end; then a copy of it that was killed after its third step. Collective.

    Each in a process group has a ``turn`` of its own.
    """
    copied = run.path.parent / RESUMED / run.run_id
    for attempt, each in enumerate((run, RunDirectory(copied))):
        # What rank 0 tells the others before a process group is theirs is told once in a start.
        if processes.is_distributed:
            os.environ["TORCHELASTIC_RESTART_COUNT"] = str(2 * turn + attempt)
        if attempt == 1:
            if processes.global_rank == 0:
                as_killed_after(run, copied.parent, step=STEPS - 1)
            if processes.world_size > 1:
                torch.distributed.barrier()
        with patch.object(fit, "draw_curves"):  # which takes as long as the training
            fit.fit(each, attempt=attempt, flag=StopFlag(), processes=processes, console=Console(file=sys.stderr))


def main() -> None:
    """Train all runs, one after the other."""
    runs: list[str] = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    processes = Processes.from_environment()
    for turn, path in enumerate(runs):
        sys.stderr.write(f"--- {path}\n")
        train_and_go_on(RunDirectory(Path(path)), processes, turn=turn)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # as the trainer ends: no teardown of process groups


if __name__ == "__main__":
    main()
