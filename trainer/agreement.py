"""What all ranks must know at the same step, though only one of them has seen it."""

import struct
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import distributed


class Votes(NamedTuple):
    """What a rank has seen, or any of them.

    Attributes:
        signal: A signal has come.
        stop: A file asks to stop.
        save: A save is due.
        failed: Too many saves have failed.
        time: The run's time is up.
    """

    signal: bool = False
    stop: bool = False
    save: bool = False
    failed: bool = False
    time: bool = False


_VOTES = struct.Struct(f"={len(Votes._fields) + 1}i")
_LONGEST_US = 2**31 - 1


class Agreement:
    """Lets all ranks find out at the same step what one of them has seen.

    A MAX all-reduce on the CPU, begun at one step and read at the next: nobody waits for it, and the device is not
    involved.
    """

    def __init__(self, *, world_size: int, timeout: timedelta) -> None:
        self._group: distributed.ProcessGroup | None = None
        if world_size > 1:
            group = distributed.new_group(backend="gloo", timeout=timeout)
            assert isinstance(group, distributed.ProcessGroup)  # torch's -100 is for ranks left out
            self._group = group
        self._world_size = world_size
        # One piece of memory, seen as bytes here and as a tensor by gloo: half the time of making and copying tensors.
        self._bytes = bytearray(_VOTES.size)
        self._tensors = [torch.frombuffer(self._bytes, dtype=torch.int32)]
        self._options = distributed.AllreduceOptions()
        self._options.reduceOp = distributed.ReduceOp.MAX
        self._pending: distributed.Work | None = None
        self.slowest_step_s = 0.0
        """The longest of the ranks' times with the votes that were read last, in seconds to the microsecond."""

    def ask(self, seen: Votes, *, step_s: float = 0.0) -> Votes:
        """Call on all ranks at the same step: what any rank had seen when this was called last.

        Args:
            seen: This rank's part.
            step_s: Seconds that a step takes on this rank, for ``slowest_step_s``.
        """
        if self._group is None:
            return seen
        agreed = self._wait()
        _VOTES.pack_into(self._bytes, 0, *seen, min(int(1e6 * step_s), _LONGEST_US))
        self._pending = self._group.allreduce(self._tensors, self._options)
        return agreed

    def first(self, text: str | None) -> str | None:
        """Call on all ranks, which wait for each other: the text of the first rank that has one."""
        if self._group is None:
            return text
        texts: list[str | None] = [None] * self._world_size
        distributed.all_gather_object(texts, text, self._group)
        return next((each for each in texts if each is not None), None)

    def _wait(self) -> Votes:
        if self._pending is None:
            return Votes()
        self._pending.wait()
        self._pending = None
        *votes, slowest_us = _VOTES.unpack_from(self._bytes)
        self.slowest_step_s = slowest_us / 1e6
        return Votes._make(map(bool, votes))
