"""Memory that workers and training process share, used again and again for the images of batches.

A fresh mapping of shared memory for each batch, which is torch's way, costs a page fault per 4 KiB: 6 to 8 ms for 64
images of 224x224, a tenth of the time of decoding them (measured on 25 November 2026). A slot is free again when no
tensor of the training process looks at it any more, so a batch may be kept for as long as one likes: where all slots
are taken, torch's way is left.
"""

import itertools
import threading
from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakValueDictionary

import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

Shape = tuple[int, int, int, int]
"""Images, height, width and channels of a batch."""
_memories: "WeakValueDictionary[int, BatchMemory]" = WeakValueDictionary()
_numbers = itertools.count()


class BatchMemory:
    """Slots of shared memory, a few for each worker.

    Made by the training process before its workers start. Workers take slots, the training process gives them back.

    Attributes:
        slot_bytes: Size of a slot.
    """

    def __init__(self, slot_bytes: int, *, workers: int, slots_per_worker: int) -> None:
        self.slot_bytes = slot_bytes
        self._number = next(_numbers)
        self._slots_per_worker = slots_per_worker
        self._slots = [_shared(slot_bytes) for _ in range(workers * slots_per_worker)]
        self._taken = _shared(len(self._slots)).zero_()
        self._unused = [_users(slot) for slot in self._slots]
        self._delivered: set[int] = set()
        self._lock = threading.Lock()
        _memories[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def take(self, worker: int, shape: Shape) -> "tuple[torch.Tensor, SlotOfBatch] | None":
        """In a worker: a free slot as a (N, H, W, C) uint8 tensor, and what to send in its place, if there is one."""
        first = worker * self._slots_per_worker
        for slot in range(first, first + self._slots_per_worker):
            if not self._taken[slot]:
                self._taken[slot] = 1
                return self._view(slot, shape), SlotOfBatch(self._number, slot, shape)
        return None

    def deliver(self, slot: int, shape: Shape) -> torch.Tensor:
        """In the training process: the (N, C, H, W) images in a slot. Gives back the slots that nobody looks at."""
        with self._lock:
            for other in [number for number in self._delivered if _users(self._slots[number]) == self._unused[number]]:
                self._delivered.remove(other)
                self._taken[other] = 0
            images = self._view(slot, shape).permute(0, 3, 1, 2)
            self._delivered.add(slot)
            return images

    def _view(self, slot: int, shape: Shape) -> torch.Tensor:
        size = shape[0] * shape[1] * shape[2] * shape[3]
        return self._slots[slot][:size].view(shape)


class SlotOfBatch:
    """Stands for images on their way from a worker; unpickled, it is the tensor."""

    def __init__(self, memory: int, slot: int, shape: Shape) -> None:
        self._parts = (memory, slot, shape)

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[int, int, Shape]]:
        return _deliver, self._parts


class SmallColumn:
    """Stands for a tensor of a few bytes a sample on its way from a worker; unpickled, it is the tensor.

    Torch's way is shared memory, and a descriptor sent through a socket of its own for each tensor: the four columns of
    a batch cost 0.9 ms that the training process waited for (measured on 28 November 2026).
    """

    def __init__(self, values: NDArray[Any]) -> None:
        self._values = values

    def __reduce__(self) -> tuple[Callable[..., torch.Tensor], tuple[NDArray[Any]]]:
        return torch.from_numpy, (self._values,)


def small_column(values: Sequence[Any]) -> Any:
    """The tensor of one value a sample; in a worker, what stands for it."""
    column = torch.tensor(values)
    return column if get_worker_info() is None else SmallColumn(column.numpy())


def _deliver(memory: int, slot: int, shape: Shape) -> torch.Tensor:
    found = _memories.get(memory)
    # Without its memory a loader is gone, and with it whoever would look at the images.
    return found.deliver(slot, shape) if found is not None else torch.empty(0, dtype=torch.uint8)


def _shared(size: int) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(size))  # type: ignore[no-untyped-call]


def _users(slot: torch.Tensor) -> int:
    """How many tensors and storages of this process share a slot's memory."""
    users: int = torch._C._storage_Use_Count(slot.untyped_storage()._cdata)
    return users
