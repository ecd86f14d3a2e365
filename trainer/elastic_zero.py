"""Optimizer state of a ZeRO run as a whole, so that it goes on on another number of processes.

DeepSpeed saves a part for each process, which only as many processes can load. Beside these, a save gathers the state,
as it does the weights (consolidation.py); a load deals it to the processes of now. Nothing is unpickled for it.
"""

import json
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning.strategies import DeepSpeedStrategy
from safetensors import safe_open
from torch import nn
from torch.nn.functional import pad

OPTIMIZER = "optimizer.safetensors"
"""Beside DeepSpeed's parts: ``exp_avg.conv_stem.weight`` and so on; numbers such as Adam's step in the metadata."""
STATE = "state.ckpt"
"""All of a checkpoint but weights and optimizer, in Lightning's format."""
NUMBERS = "numbers"


def gather_optimizer(strategy: DeepSpeedStrategy, network: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """What the optimizer keeps of each parameter, on rank 0, and as metadata what it keeps besides. Collective.

    To be written once all else is gathered too: a rank that cannot write must not miss what others wait for.
    """
    from deepspeed.utils import safe_get_full_optimizer_state

    zero: Any = strategy.deepspeed_engine.optimizer
    _link(zero)
    flat = _partitions(zero)[0]
    state = zero.optimizer.state[flat]
    names = sorted(key for key, value in state.items() if _is_of(flat, value))
    tensors: dict[str, torch.Tensor] = {}
    for key in names:
        for name, parameter in network.named_parameters():
            gathered = safe_get_full_optimizer_state(parameter, key)
            if strategy.is_global_zero:
                tensors[f"{key}.{name}"] = gathered.detach().cpu().contiguous()
    numbers = {key: _number(value) for key, value in state.items() if key not in names and value is not None}
    return tensors, {NUMBERS: json.dumps(numbers)}


def restore(strategy: DeepSpeedStrategy, network: nn.Module, weights: dict[str, torch.Tensor], file: Path) -> None:
    """Give an engine that has made no step yet the weights and the optimizer state of a checkpoint. Collective.

    Args:
        strategy: With its engine set up.
        network: Whose parameters the engine partitions.
        weights: Parameters and buffers by name, fp32.
        file: Of what `gather_optimizer` gathered.
    """
    zero: Any = strategy.deepspeed_engine.optimizer
    with safe_open(file, framework="pt") as saved:
        names = sorted({key.partition(".")[0] for key in saved.keys()})  # noqa: SIM118 - no mapping
        numbers = json.loads(saved.metadata()[NUMBERS])
        for flat in _partitions(zero):
            zero.optimizer.state[flat] = {name: torch.zeros_like(flat) for name in names} | {
                key: torch.tensor(value["tensor"]) if isinstance(value, dict) else value
                for key, value in numbers.items()
            }
        _link(zero)
        for name, parameter in network.named_parameters():
            _set_weight(parameter, weights[name])
            for key, value in [(None, weights[name]), *((key, saved.get_tensor(f"{key}.{name}")) for key in names)]:
                _set(zero, parameter, value.to(strategy.root_device), key)
    for name, buffer in network.named_buffers():
        buffer.copy_(weights[name])


def _partitions(zero: Any) -> list[torch.Tensor]:
    """This rank's flat parts, which are all the parameters that the optimizer itself knows, by DeepSpeed's stages."""
    for name in ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition"):
        if hasattr(zero, name):
            return list(getattr(zero, name))
    raise TypeError(f"{type(zero).__name__} is no ZeRO optimizer that is known here")


def _link(zero: Any) -> None:
    """Let each parameter find its piece of the state: ZeRO 1 and 2 look for it before the first step has made any."""
    for group, flat in zip(getattr(zero, "bit16_groups", []), _partitions(zero), strict=False):
        for parameter in group:
            if parameter._hp_mapping is not None:  # this rank has a piece of it
                parameter._hp_mapping.set_optim_state_fragment(flat, zero.optimizer.state[flat])


def _is_of(flat: torch.Tensor, value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.shape == flat.shape


def _number(value: Any) -> Any:
    return {"tensor": value.item()} if isinstance(value, torch.Tensor) else value


def _set_weight(parameter: nn.Parameter, value: torch.Tensor) -> None:
    """What the forward pass works with, whole on each rank or in parts (ZeRO 3)."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(value)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.data.copy_(value)


def _set(zero: Any, parameter: Any, value: torch.Tensor, key: str | None) -> None:
    """This rank's part of the fp32 weight, or of the state ``key``."""
    if not hasattr(parameter, "ds_id"):
        parameter.set_full_hp_param(value, key)
        return
    # DeepSpeed's own function for ZeRO 3 refuses what does not divide evenly among the ranks.
    part, _ = zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=key)
    start = part.numel() * torch.distributed.get_rank()
    whole = pad(value.flatten(), (0, part.numel() * torch.distributed.get_world_size() - value.numel()))
    part.data.copy_(whole[start : start + part.numel()])
