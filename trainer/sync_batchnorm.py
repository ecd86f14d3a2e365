"""BatchNorm that normalises by the statistics of all ranks' micro-batches together.

On CUDA it is timm's and torch's; for CPUs, where torch has none, it is written here.
"""

from typing import Any

import torch
from timm.layers import BatchNormAct2d, convert_sync_batchnorm
from torch import distributed, nn
from torch.autograd.function import once_differentiable

from configs.problems import ConfigError, Problem
from configs.schema import Config
from trainer.logs import logger
from trainer.processes import Processes


def synchronise_as_configured(network: nn.Module, config: Config, processes: Processes, accelerator: str) -> None:
    """As ``synchronise``, where that is wanted and there are other ranks to ask.

    Raises:
        ConfigError: If the network has no such layer.
    """
    if not config.trainer.sync_batchnorm:
        return
    if processes.world_size == 1:
        logger.warning("trainer.sync_batchnorm has no effect: this run has one process, which has no others to ask")
    if processes.is_distributed:
        synchronise(network, accelerator)


def synchronise(network: nn.Module, accelerator: str) -> None:
    """Let a network's BatchNorm layers ask all ranks in training. Parameters, buffers and their names stay.

    Lightning's own conversion is torch's, which loses the activation that timm's layers hold; and it leaves DeepSpeed
    out.

    Raises:
        ConfigError: If the network has no such layer.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    if not layers:
        accepted = "false: the network has no BatchNorm"
        raise ConfigError([Problem(key="trainer.sync_batchnorm", received="true", accepted=accepted)])
    if accelerator == "cuda":
        convert_sync_batchnorm(network)
        return
    for layer in layers:
        if not isinstance(layer, BatchNormAct2d):
            layer.drop = layer.act = nn.Identity()
        layer.__class__ = CpuSyncBatchNorm


class CpuSyncBatchNorm(BatchNormAct2d):  # type: ignore[misc]
    """timm's layer, whose statistics in training are those of all ranks. No SyncBatchNorm: DDP refuses it on CPUs.

    Input (N, C, H, W) in any float format, output alike; statistics in fp32 or fp64. Ranks have micro-batches of one
    size.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise, then activate."""
        if not self.training:
            evaluated: torch.Tensor = super().forward(x)
            return evaluated
        activated: torch.Tensor = self.act(self.drop(self._normalised(x)))
        return activated

    def _normalised(self, x: torch.Tensor) -> torch.Tensor:
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        rank, ranks = distributed.get_rank(), distributed.get_world_size()
        # Each rank fills its row, and the sum over ranks is all rows: means are subtracted before anything is squared.
        own = torch.stack(torch.var_mean(values, (0, 2, 3), correction=0))
        rows = _SumOverRanks.apply(nn.functional.pad(own[None], (0, 0, 0, 0, rank, ranks - rank - 1)))
        variances, means = rows.unbind(1)
        mean = means.mean(0)
        var = (variances + (means - mean).square()).mean(0)
        if self.track_running_stats:
            self._move(mean.detach(), var.detach(), count=ranks * values.numel() // values.shape[1])
        normal = (values - _by_channel(mean)) * _by_channel((var + self.eps).rsqrt())
        if self.affine:
            normal = normal * _by_channel(self.weight) + _by_channel(self.bias)
        return normal.to(x.dtype)

    def _move(self, mean: torch.Tensor, var: torch.Tensor, *, count: int) -> None:
        """Move the running statistics as torch does, by the unbiased variance."""
        self.num_batches_tracked.add_(1)
        momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
        self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), momentum)


class _SumOverRanks(torch.autograd.Function):
    """A sum over all ranks, through which the gradients of all ranks' losses come back."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return _summed(tensor)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return _summed(gradient)


def _summed(tensor: torch.Tensor) -> torch.Tensor:
    total = tensor.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _by_channel(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)
