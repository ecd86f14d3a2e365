"""A training step of the real network in fake tensors: what it keeps, moves and computes, without its memory."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from configs.problems import ConfigError, Problem, shown
from configs.schema import Config
from trainer.module import EfficientNetModule
from trainer.network import build_network, image_size
from trainer.optimization import build_optimizer
from trainer.plan_tracker import Kernel, StepTracker


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

        Raises:
            ConfigError: If BatchNorm has a single value of a channel to normalise.
        """
        try:
            return self._run(images, gradients_stay=gradients_stay)
        except ValueError as error:
            accepted = f"more samples or pixels ({error})"
            raise ConfigError([Problem(key="data.micro_batch_size", received=str(images), accepted=accepted)]) from None

    def _run(self, images: int, *, gradients_stay: bool) -> Pass:
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
        """A step of the optimizer, by the second of two: the first makes its state.

        Raises:
            ConfigError: If the optimizer cannot step without values.
        """
        try:
            return self._update()
        except RuntimeError as error:
            opt = self._config.optimizer.opt
            accepted = f"one whose step needs no values, to be planned with: {opt} can only be tried ({error})"
            raise ConfigError([Problem(key="optimizer.opt", received=shown(opt), accepted=accepted)]) from None

    def _update(self) -> Update:
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
