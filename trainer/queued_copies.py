"""Python's numbers to a GPU without waiting for it, in code that is not ours."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class QueuedCopies(TorchFunctionMode):
    """Within it, ``torch.tensor(numbers, device=…)`` is copied from pinned memory when the device comes to it.

    By itself torch copies from memory that is not pinned, and waits until all before it is done: timm's Mixup, in modes
    `pair` and `elem`, once or twice a micro-batch.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Torch's hook: each function that is called within."""
        kwargs = dict(kwargs or {})
        if func is torch.tensor and kwargs.get("device") is not None:
            device = torch.device(kwargs.pop("device"))
            values = func(*args, **kwargs)
            # Not by `pin_memory=True`, which torch refuses for NumPy's arrays.
            pinned = values.pin_memory() if device.type == "cuda" else values
            return pinned.to(device, non_blocking=True)
        return func(*args, **kwargs)
