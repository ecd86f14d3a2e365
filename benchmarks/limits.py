"""What a device can do at most, measured; and what a training step asks of it, counted."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Work(NamedTuple):
    """Of a step: floating-point operations of convolutions and matrix products, and bytes read and written."""

    flops: float
    bytes: float


class _Bytes(TorchDispatchMode):
    """Adds up what each operator reads and writes, as if nothing were fused and no cache held anything."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def work(network: torch.nn.Module, *, batch: int, size: int, dtype: torch.dtype) -> Work:
    """Of a forward and backward pass, counted on tensors without memory.

    The backward pass has twice the operations of the forward one; torch would count a grouped convolution's as if it
    were not grouped, 14 times as many for B0.
    """
    copy = network.to(device="meta", dtype=dtype).train()
    images = torch.empty(batch, 3, size, size, device="meta", dtype=dtype)
    count, moved = FlopCounterMode(display=False), _Bytes()
    with moved:
        with count:
            logits = copy(images)
        logits.sum().backward()
    return Work(3 * count.get_total_flops(), moved.total)


def matrix_limit(device: torch.device, dtype: torch.dtype, *, size: int = 8192) -> float:
    """Floating-point operations a second of a large matrix product."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / _seconds(lambda: a @ b, device)


def bandwidth_limit(device: torch.device, *, size_bytes: int = 2**30) -> float:
    """Bytes a second of a large copy, read and written."""
    a = torch.empty(size_bytes, dtype=torch.uint8, device=device)
    b = torch.empty_like(a)
    return 2 * size_bytes / _seconds(lambda: b.copy_(a), device)


def _seconds(call: Callable[[], Any], device: torch.device, *, repeat: int = 20) -> float:
    def timed(times: int) -> float:
        begin = time.perf_counter()
        for _ in range(times):
            call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    timed(3)
    return timed(repeat) / repeat
