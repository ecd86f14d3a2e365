"""BatchNorm's running statistics, the same for any number of ranks and any accumulation.

PyTorch updates them at each forward pass, on each rank alone: they differ between ranks, are lost but for rank 0's in a
checkpoint, and the same momentum means another memory when the number of devices changes. Here they move once per
optimizer step, by the mean of the statistics of all micro-batches of the global batch. With one micro-batch a rank this
equals timm's ``--dist-bn reduce`` at every step; with one micro-batch in all, plain PyTorch.
"""

from typing import Any
from weakref import WeakKeyDictionary

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.distributed import ReduceOp, all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.module import EfficientNetModule


class BatchNormStatistics(Callback):
    """Makes each BatchNorm hold the mean over a step's micro-batches, and mixes it into the running one at its end.

    The mean needs no code of its own: momentum 1 / (i + 1) at micro-batch i is a running mean.
    """

    def __init__(self) -> None:
        self._momentum: list[float] = []
        self._running: torch.Tensor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the statistics that the network was built or restored with, in fp32."""
        layers = _layers(pl_module)
        self._momentum = [layer.momentum if layer.momentum is not None else 0.1 for layer in layers]
        self._running = _flat(_buffers(layers)) if layers else None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the momentum that makes a mean."""
        momentum = 1 / (batch_idx % trainer.accumulate_grad_batches + 1)
        for layer in _layers(pl_module):
            layer.momentum = momentum

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step, average over the ranks and update the running statistics."""
        assert isinstance(pl_module, EfficientNetModule)
        if self._running is None or not pl_module.ends_step(batch_idx) or pl_module.backbone_is_frozen:
            return
        layers = _layers(pl_module)
        buffers = _buffers(layers)
        counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        if pl_module.skipped:  # what it saw may be NaN, and must leave no trace
            torch._foreach_sub_(counters, trainer.accumulate_grad_batches)
            torch._foreach_copy_(buffers, _split(self._running, buffers))
            return
        step = _flat(buffers)
        if trainer.world_size > 1:
            all_reduce(step, ReduceOp.SUM)
            step /= trainer.world_size
            others = (trainer.world_size - 1) * trainer.accumulate_grad_batches
            torch._foreach_add_(counters, others)
        self._running.lerp_(step, self._momentum[0])
        torch._foreach_copy_(buffers, _split(self._running, buffers))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the layers their own momentum back."""
        for layer, momentum in zip(_layers(pl_module), self._momentum, strict=True):
            layer.momentum = momentum


_FOUND: "WeakKeyDictionary[nn.Module, list[_BatchNorm]]" = WeakKeyDictionary()
"""Layers of each module: walking through B0's 350 parts twice a step takes longer than all that is done with them."""


def _layers(pl_module: nn.Module) -> list[_BatchNorm]:
    found = _FOUND.get(pl_module)
    if found is None:
        found = [m for m in pl_module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        _FOUND[pl_module] = found
    return found


def _buffers(layers: list[_BatchNorm]) -> list[torch.Tensor]:
    both = (buffer for layer in layers for buffer in (layer.running_mean, layer.running_var))
    return [buffer for buffer in both if buffer is not None]


def _flat(buffers: list[torch.Tensor]) -> torch.Tensor:
    return torch.cat([buffer.float() for buffer in buffers])


def _split(flat: torch.Tensor, buffers: list[torch.Tensor]) -> list[torch.Tensor]:
    return list(torch.split(flat, [buffer.numel() for buffer in buffers]))
