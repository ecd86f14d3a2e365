"""What ranks that predict say to each other: how many images are done, and what the answers are."""

from typing import Any, cast

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from trainer.processes import Processes
from trainer.rendezvous import PATIENCE

DONE = "effnet/predicted"


class Ranks:
    """All ranks of a prediction; one alone needs no process group."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._done = 0
        self._store: Any = None
        if processes.is_distributed:
            self._store, rank, world_size = next(rendezvous("env://", timeout=PATIENCE))
            dist.init_process_group("gloo", store=self._store, rank=rank, world_size=world_size, timeout=PATIENCE)

    def add(self, count: int) -> int:
        """So many more images are done here; returns how many are done in all."""
        if self._store is None:
            self._done += count
            return self._done
        return int(self._store.add(DONE, count))

    def turns(self, batches: int) -> int:
        """How many batches the rank has that has the most, where they are dealt in turn."""
        return -(-batches // self._processes.world_size)

    def gather(self, mine: list[Any]) -> list[Any] | None:
        """What all ranks have, on rank 0. Collective."""
        if self._store is None:
            return mine
        first = self._processes.global_rank == 0
        parts: list[Any] | None = [None] * self._processes.world_size if first else None
        dist.gather_object(mine, parts)
        return [each for part in cast(list[list[Any]], parts) for each in part] if first else None
