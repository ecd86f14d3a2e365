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
from torch.distributed import ReduceOp, Work, all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from trainer.module import EfficientNetModule


class BatchNormStatistics(Callback):
    """Makes each BatchNorm hold the mean over a step's micro-batches, and mixes it into the running one at its end.

    The mean needs no code of its own: momentum 1 / (i + 1) at micro-batch i is a running mean. Ranks sum it up while
    the last backward pass of the step runs, which changes no statistics. Where activations are computed once more in it
    (gradient checkpointing), they count once: statistics stand still meanwhile. A compiled network is compiled anew for
    each momentum: there it is 1, and the mean is kept here.
    """

    def __init__(self) -> None:
        self._momentum: list[float] = []
        self._running: torch.Tensor | None = None
        self._compiled = False
        self._batch_idx = 0
        self._mean: torch.Tensor | None = None
        self._sum: Work | None = None
        self._held: list[tuple[_BatchNorm, float | None, torch.Tensor | None]] = []
        self._uncounted = torch.zeros((), dtype=torch.long)  # torch's SyncBatchNorm counts, into this if need be

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take over the statistics that the network was built or restored with, in fp32."""
        layers = _layers(pl_module)
        self._momentum = [layer.momentum if layer.momentum is not None else 0.1 for layer in layers]
        self._running = _flat(_buffers(layers)) if layers else None
        assert isinstance(pl_module, EfficientNetModule)
        self._compiled = pl_module.config.trainer.compile is not None
        if self._compiled:
            for layer in layers:
                layer.momentum = 1.0

    def step_state(self) -> list[torch.Tensor]:
        """What a step changes beside the layers."""
        return [] if self._running is None else [self._running]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the momentum that makes a mean."""
        self._batch_idx = batch_idx
        if self._compiled:
            return
        momentum = 1 / (batch_idx % trainer.accumulate_grad_batches + 1)
        for layer in _layers(pl_module):
            layer.momentum = momentum

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: torch.Tensor) -> None:
        """Begin to sum up the mean over the ranks; hold the statistics where blocks are computed again."""
        assert isinstance(pl_module, EfficientNetModule)
        if self._running is not None and not pl_module.backbone_is_frozen:
            ends_step = pl_module.ends_step(self._batch_idx)
            if self._compiled:
                self._add(_flat(_buffers(_layers(pl_module))), self._batch_idx % trainer.accumulate_grad_batches)
            elif ends_step:
                self._mean = _flat(_buffers(_layers(pl_module)))
            if ends_step and trainer.world_size > 1:
                assert self._mean is not None
                self._sum = all_reduce(self._mean, ReduceOp.SUM, async_op=True)
        if pl_module.config.trainer.gradient_checkpointing:
            for layer in _layers(pl_module):
                self._held.append((layer, layer.momentum, layer.num_batches_tracked))
                layer.momentum, layer.num_batches_tracked = 0.0, self._uncounted

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let them move again."""
        for layer, momentum, counter in self._held:
            layer.momentum, layer.num_batches_tracked = momentum, counter
        self._held = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At the end of an optimizer step, update the running statistics by the mean over the ranks."""
        assert isinstance(pl_module, EfficientNetModule)
        if self._running is None or pl_module.backbone_is_frozen or not pl_module.ends_step(batch_idx):
            return
        if self._sum is not None:
            self._sum.wait()
        layers = _layers(pl_module)
        buffers = _buffers(layers)
        counters = [layer.num_batches_tracked for layer in layers if layer.num_batches_tracked is not None]
        if pl_module.skipped:  # what it saw may be NaN, and must leave no trace
            torch._foreach_sub_(counters, trainer.accumulate_grad_batches)
            torch._foreach_copy_(buffers, _split(self._running, buffers))
            return
        step = self._mean
        assert step is not None
        if trainer.world_size > 1:
            step /= trainer.world_size
            if not pl_module.config.trainer.sync_batchnorm:  # with which all ranks' micro-batches are one
                others = (trainer.world_size - 1) * trainer.accumulate_grad_batches
                torch._foreach_add_(counters, others)
        self._running.lerp_(step, self._momentum[0])
        torch._foreach_copy_(buffers, _split(self._running, buffers))

    def _add(self, statistics: torch.Tensor, micro_batch: int) -> None:
        if micro_batch == 0 or self._mean is None:
            self._mean = statistics
        else:
            self._mean.lerp_(statistics, 1 / (micro_batch + 1))

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
