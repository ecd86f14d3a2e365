"""Modules whose tensors have a shape and no memory."""

import torch
from torch import nn

from configs.schema import Config
from trainer.distillation import Distillation, build_teacher


def make_fake(module: nn.Module, *, dtype: torch.dtype | None = None) -> None:
    """Replace all parameters and buffers, in place, by those of the fake mode that is on; strides stay.

    Args:
        module: Its tensors may be on the meta device.
        dtype: Of all parameters; None keeps each one's own.
    """
    for part in module.modules():
        for name, parameter in list(part._parameters.items()):
            if parameter is not None:
                empty = torch.empty_strided(parameter.size(), parameter.stride(), dtype=dtype or parameter.dtype)
                part._parameters[name] = nn.Parameter(empty, requires_grad=parameter.requires_grad)
        for name, buffer in list(part._buffers.items()):
            if buffer is not None:
                part._buffers[name] = torch.empty_strided(buffer.size(), buffer.stride(), dtype=buffer.dtype)


def meta_distillation(config: Config, dtype: torch.dtype | None) -> Distillation | None:
    """The teacher of a configuration without its weights, on the meta device; None where there is none.

    Args:
        config: Of the run.
        dtype: Of the network's weights, which the teacher's are cast to; None is as they come.

    Raises:
        ConfigError: If there is no such teacher, or it is for other classes or channels.
    """
    if config.distillation.teacher is None:
        return None
    with torch.device("meta"):
        teacher, statistics = build_teacher(config, weights=False)
    return Distillation(config, teacher, statistics).to(dtype=dtype)
