"""Work of rank 0 that the other ranks wait for, before there are process groups."""

import json
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch.distributed.rendezvous import rendezvous

from configs.problems import ConfigError, DataError, UnreachableError
from trainer.processes import Processes

_stores: list[Any] = []
PATIENCE = timedelta(days=1)
"""A launcher ends the waiting ranks long before, if rank 0 dies."""

Found = dict[str, Any] | None
"""What JSON can hold."""


def on_first_rank(processes: Processes, work: Callable[[], Found]) -> Found:
    """Do ``work`` on rank 0 while the others wait. All have what it returns; what it raises there, they raise too.

    Raises:
        DataError: On the other ranks, if running again will not help.
        UnreachableError: On the other ranks, if it may.
    """
    if processes.world_size == 1:
        return work()
    # The store of the launcher; or one of rank 0's at the address where the process groups will meet, which join it
    # there: it must not be gone by then.
    store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
    _stores.append(store)
    key = f"effnet/first/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"  # that store outlives a restart
    if processes.global_rank == 0:
        word: dict[str, Any] = {"failed": True, "lasting": False, "text": "rank 0 failed"}
        try:
            value = work()
            word = {"failed": False, "value": value}
        except Exception as error:
            word |= {"lasting": isinstance(error, ConfigError | DataError), "text": str(error)}
            raise
        finally:
            store.set(key, json.dumps(word))
        return value
    word = json.loads(store.get(key))
    if word["failed"]:
        raise (DataError if word["lasting"] else UnreachableError)(str(word["text"]))
    found: Found = word["value"]
    return found
