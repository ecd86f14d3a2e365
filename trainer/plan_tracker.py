"""Which tensors are alive in a step, and what each of its operations reads, writes and computes."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves
from torch.utils.flop_counter import flop_registry

Kernel = tuple[int, int]
"""Floating-point operations (a multiply-add is two) and bytes read and written of one operation on the device."""


class StepTracker(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows which tensors are alive, and what each operation reads, writes and computes. Real tensors or fake ones.

    torch's own MemTracker finds the same peak (`tests/unit/trainer/test_plan_step.py`), but looks at all modules
    at each operation, which is slow on large networks.

    Attributes:
        live_bytes: Of the tensors that have come to be under it and are still there.
        peak_bytes: The most of these at once.
        kernels: Operations since the last `reset`.
    """

    def __init__(self, resident: Iterable[torch.Tensor] = ()) -> None:
        """What is ``resident`` was there before, and does not count."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = self.peak_bytes = 0
        self.kernels: list[Kernel] = []
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        for tensor in resident:
            self._add(tensor, counts=False)

    def reset(self) -> None:
        """Begin anew with what is alive now."""
        self.peak_bytes, self.kernels = self.live_bytes, []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        try:
            result = func(*args, **kwargs)
        except DataDependentOutputException:
            return 1.0 if args[0].dtype.is_floating_point else 1  # the value of a fake tensor: any number will do
        written = [leaf for leaf in arg_tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        for tensor in written:
            self._add(tensor, counts=True)
        if not func.is_view and func.namespace != "prim" and "empty" not in func._opname:
            read = [leaf for leaf in arg_tree_leaves(*args, **kwargs) if isinstance(leaf, torch.Tensor)]
            self.kernels.append(
                (
                    _flops(func, args, kwargs, result),
                    sum(tensor.numel() * tensor.element_size() for tensor in (*read, *written)),
                )
            )
        return result

    def _add(self, tensor: torch.Tensor, *, counts: bool) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes() if counts else 0

        def forget(_: object) -> None:
            del self._known[key]
            self.live_bytes -= size

        self._known[key] = weakref.ref(storage, forget)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _flops(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    packet = func.overloadpacket
    if packet is torch.ops.aten.convolution_backward:
        # torch's formula leaves the groups out, and makes a depthwise convolution as dear as a full one.
        gradient, _, weight, *_, wanted = args
        return int(2 * gradient.numel() * weight[0].numel() * sum(wanted[:2]))
    return int(flop_registry[packet](*args, **kwargs, out_val=result)) if packet in flop_registry else 0
