"""Counts what makes the host wait for a device, also where all tensors lie on the CPU and nothing is waited for."""

from collections import Counter, defaultdict
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

READS = (
    "item", "tolist", "numpy", "cpu", "__bool__", "__float__", "__int__", "__index__", "__array__", "__complex__",
)  # fmt: skip
"""Methods of a tensor that bring its values to the host."""
SIZES = ("nonzero", "masked_select", "unique", "_unique2", "unique_consecutive", "repeat_interleave", "bincount")
"""Operators whose result has a size that the host must know."""


class Reads(TorchFunctionMode):
    """Notes what Python code asks of tensors, and what of Python's numbers it copies to the device.

    A copy to the host that is not waited for may be read once a later step has begun: it has long arrived.
    """

    def __init__(self, counts: "CountsReads") -> None:
        super().__init__()
        self._counts = counts
        self._copies: list[tuple[int, torch.Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        # The string alone, here and below: a torch.device is where this training's tensors are, and might be another.
        if name == "to" and "cpu" in (*args[1:], *kwargs.values()):
            if not kwargs.get("non_blocking"):
                self._counts.note("to(cpu)")
            copy = func(*args, **kwargs)
            self._copies.append((self._counts.step, copy))
            return copy
        if name in READS and args and isinstance(args[0], torch.Tensor):
            if any(args[0] is copy and step < self._counts.step for step, copy in self._copies):
                with torch.utils._python_dispatch._disable_current_modes():
                    return func(*args, **kwargs)
            self._counts.note(name)
        elif func in (torch.tensor, torch.as_tensor) and kwargs.get("device", "cpu") != "cpu":
            self._counts.note(name)
        elif name in ("__getitem__", "__setitem__") and _by_mask(args[1]):
            self._counts.note(f"{name} by a mask")
        return func(*args, **kwargs)


class Operators(TorchDispatchMode):
    """Notes what C++ code reads, as under `torch.clamp(…, a_tensor_as_number)`."""

    def __init__(self, counts: "CountsReads") -> None:
        super().__init__()
        self._counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name == "_local_scalar_dense" or name in SIZES:
            self._counts.note(name)
        return func(*args, **(kwargs or {}))


class CountsReads(Callback):
    """From a step's beginning to the next one's, what would wait for a device. Must be the last callback.

    Attributes:
        found: By number of the step, from 1: what was asked how often.
        step: Number of the step under way.
    """

    def __init__(self) -> None:
        self.found: defaultdict[int, Counter[str]] = defaultdict(Counter)
        self.step = 0
        self._modes = (Reads(self), Operators(self))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for mode in self._modes:
            mode.__enter__()

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self.step = trainer.global_step + 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(None, None, None)

    def note(self, what: str) -> None:
        """Count it for the step under way."""
        self.found[self.step][what] += 1


def _by_mask(index: object) -> bool:
    parts = index if isinstance(index, tuple) else (index,)
    return any(isinstance(part, torch.Tensor) and part.dtype in (torch.bool, torch.uint8) for part in parts)
