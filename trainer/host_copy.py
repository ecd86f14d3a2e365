"""A checkpoint's state in host memory, which training cannot change any more while it is written."""

from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection


class HostCopy:
    """Copies states, one at a time: the memory of a copy is taken again for the next.

    Fresh memory costs more than the copy itself, page by page, and much more where it is pinned, as it is for what
    comes from a GPU.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.Tensor, bool]] = []

    def of(self, state: Any) -> Any:
        """The same containers and values, with every tensor copied. The copy before it is no longer valid."""
        earlier, self._buffers = iter(self._buffers), []

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            source, (buffer, pinned) = tensor.detach(), next(earlier, (None, False))
            if buffer is None or pinned != source.is_cuda or not _alike(buffer, source):
                buffer = torch.empty_like(source, device="cpu", pin_memory=source.is_cuda)
            buffer.copy_(source, non_blocking=True)
            self._buffers.append((buffer, source.is_cuda))
            return buffer

        result = apply_to_collection(state, torch.Tensor, copied)
        if any(pinned for _, pinned in self._buffers):
            torch.cuda.synchronize()
        return result


def _alike(buffer: torch.Tensor, source: torch.Tensor) -> bool:
    return buffer.dtype == source.dtype and buffer.shape == source.shape and buffer.stride() == source.stride()
