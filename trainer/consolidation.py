"""The whole network of a ZeRO run, whose weights lie in parts on all ranks, as a file that any program reads."""

import os
from pathlib import Path

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.strategies import DeepSpeedStrategy
from safetensors.torch import load_file, save_file
from torch import nn

from trainer.elastic_zero import OPTIMIZER, gather_optimizer

RAW, EMA = "raw.", "ema."


def gather_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Weights in fp32 and buffers by name, on the CPU. Collective: every rank takes part, and all get the result.

    The fp32 master weights, not what a forward pass in 16 bits works with.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {name: safe_get_full_fp32_param(parameter) for name, parameter in network.named_parameters()}
    buffers = dict(network.named_buffers())
    return {name: tensor.detach().cpu().contiguous() for name, tensor in (weights | buffers).items()}


def save_weights(trainer: Trainer, network: nn.Module, average: nn.Module | None, file: Path) -> None:
    """Write ``network``, and its average where there is one, to a safetensors file, and the optimizer's beside it.

    Collective.
    """
    assert isinstance(trainer.strategy, DeepSpeedStrategy)
    optimizer, numbers = gather_optimizer(trainer.strategy, network)
    tensors = {RAW + name: tensor for name, tensor in gather_weights(network).items()}
    if average is not None:
        tensors |= {EMA + name: tensor.detach().cpu().contiguous() for name, tensor in average.state_dict().items()}
    if trainer.is_global_zero:
        _write(file.with_name(OPTIMIZER), optimizer, numbers)
        _write(file, tensors)


def load_saved_weights(file: Path) -> dict[str, dict[str, torch.Tensor]]:
    """What `save_weights` wrote: ``raw``, and ``ema`` where an average was kept."""
    tensors = load_file(file)
    kinds = {kind.removesuffix("."): _under(kind, tensors) for kind in (RAW, EMA)}
    return {kind: weights for kind, weights in kinds.items() if weights}


def _write(file: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> None:
    save_file(tensors, file, metadata=metadata)
    descriptor = os.open(file, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def _under(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
