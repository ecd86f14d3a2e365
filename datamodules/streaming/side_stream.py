"""Work that a GPU does on a batch to come, beside what it computes for the one before."""

from collections.abc import Callable

import torch

from datamodules.streaming.loaders import Batch


class SideStream:
    """A stream for it, made when the first batch comes; on the CPU there is none."""

    def __init__(self) -> None:
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, work: Callable[[], Batch], device: torch.device) -> Batch:
        """What ``work`` puts on a device; what is queued there from now on waits for it, and the host does not."""
        if device.type != "cuda":
            return work()
        if self._stream is None:
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            found = work()
        current = torch.cuda.current_stream(device)
        current.wait_stream(self._stream)
        for tensor in found:
            tensor.record_stream(current)  # its memory is not given to the next batch before it has been used
        return found
