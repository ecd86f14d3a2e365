"""A training step of the real network in fake tensors: what it keeps, moves and computes, without its memory."""

import weakref
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import arg_tree_leaves
from torch.utils.flop_counter import flop_registry

from configs.schema import Config
from trainer.module import EfficientNetModule
from trainer.network import build_network, image_size
from trainer.optimization import build_optimizer

Kernel = tuple[int, int]
"""Floating-point operations (a multiply-add is two) and bytes read and written of one operation on the device."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Forward and backward pass of a micro-batch.

    Attributes:
        images: Samples in it.
        forward_macs: Multiply-adds of the forward pass, of convolutions and matrix products, all images together.
        forward_kernels: How many of the operations are of the forward pass.
        kept_bytes: What is in memory between forward and backward pass, beyond what stays between steps.
        peak_bytes: The most that is in memory at once, beyond what stays between steps.
        kernels: All operations of both.
    """

    images: int
    forward_macs: int
    forward_kernels: int
    kept_bytes: int
    peak_bytes: int
    kernels: Sequence[Kernel]


@dataclass(frozen=True, kw_only=True)
class Update:
    """The optimizer's step.

    Attributes:
        state_bytes: What the optimizer keeps.
        state_tensors: Its number of tensors.
        peak_bytes: What it needs beside that while it steps.
        kernels: Its operations.
    """

    state_bytes: int
    state_tensors: int
    peak_bytes: int
    kernels: Sequence[Kernel]


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
        result = func(*args, **kwargs)
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


class FakeTraining:
    """The network and optimizer of a configuration in tensors that have a shape and no memory.

    They are on the CPU: the backward pass wants no GPU then. Operations and sizes are those of CUDA but for what its
    libraries work in.

    Attributes:
        network: As `build_network` makes it.
        optimizer: As `build_optimizer` makes it, one kernel for many tensors where it can on a GPU.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._mode = config, FakeTensorMode()
        casts = config.trainer.strategy == "deepspeed"  # it casts weights, where Lightning casts at each operation
        self._dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(config.trainer.precision)
        with torch.device("meta"):
            self.network = build_network(config, restored=True)
        with self._mode:
            for module in self.network.modules():
                for name, parameter in list(module._parameters.items()):
                    if parameter is not None:
                        dtype = self._dtype if casts and self._dtype is not None else parameter.dtype
                        module._parameters[name] = nn.Parameter(self._empty_like(parameter, dtype))
                for name, buffer in list(module._buffers.items()):
                    if buffer is not None:
                        module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
            self._module = EfficientNetModule(config, self.network)
            self.optimizer: Optimizer = build_optimizer(self.network, config.optimizer)
            for group in self.optimizer.param_groups:
                if config.trainer.accelerator != "cpu" and "foreach" in group and not group.get("fused"):
                    group["foreach"] = True
        self._autocast = self._dtype if not casts else None
        self._size = image_size(config)

    def run(self, images: int, *, gradients_stay: bool) -> Pass:
        """Forward and backward pass.

        Args:
            images: Samples of the micro-batch.
            gradients_stay: They are there before (DDP's buckets, accumulation), and count among what stays.
        """
        with self._mode:
            self._set_gradients(there=gradients_stay)
            with StepTracker(self._resident()) as tracker:
                pixels = torch.empty((images, self._config.model.in_chans, self._size, self._size), dtype=torch.uint8)
                targets = torch.zeros(images, dtype=torch.long)
                inputs = self._module.normalise(pixels)
                self.network.train()
                tracker.kernels.clear()
                with self._precision():
                    loss = cross_entropy(self.network(inputs).float(), targets)
                del inputs
                forward, kept = len(tracker.kernels), tracker.live_bytes
                loss.backward()  # type: ignore[no-untyped-call]
            self._set_gradients(there=False)
        return Pass(
            images=images,
            forward_macs=sum(flops for flops, _ in tracker.kernels[:forward]) // 2,
            forward_kernels=forward,
            kept_bytes=kept,
            peak_bytes=tracker.peak_bytes,
            kernels=tracker.kernels,
        )

    def update(self) -> Update:
        """A step of the optimizer, by the second of two: the first makes its state."""
        with self._mode:
            self._set_gradients(there=True)
            with StepTracker(self._resident()) as tracker:
                self.optimizer.step()
                state = sum(tensor.untyped_storage().nbytes() for tensor in self._state())
                tracker.reset()
                self.optimizer.step()
            self._set_gradients(there=False)
        peak = tracker.peak_bytes - state
        return Update(
            state_bytes=state,
            state_tensors=len(self._state()),
            peak_bytes=max(peak, 0),
            kernels=tracker.kernels,
        )

    def _empty_like(self, parameter: nn.Parameter, dtype: torch.dtype) -> torch.Tensor:
        trainer = self._config.trainer
        if parameter.dim() == 4 and trainer.channels_last and trainer.strategy != "deepspeed":
            return torch.empty(parameter.shape, dtype=dtype, memory_format=torch.channels_last)
        return torch.empty(parameter.shape, dtype=dtype)

    def _set_gradients(self, *, there: bool) -> None:
        for parameter in self.network.parameters():
            parameter.grad = torch.zeros_like(parameter) if there else None

    def _resident(self) -> list[torch.Tensor]:
        weights = list(self.network.parameters())
        gradients = [parameter.grad for parameter in weights if parameter.grad is not None]
        return [*weights, *gradients, *self.network.buffers()]

    def _state(self) -> list[torch.Tensor]:
        values = (value for state in self.optimizer.state.values() for value in state.values())
        return [value for value in values if isinstance(value, torch.Tensor)]

    def _precision(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._autocast is None else torch.autocast("cpu", self._autocast)
