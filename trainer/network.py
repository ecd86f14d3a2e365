"""The network of a configuration, built by timm: a published EfficientNet, or B0 scaled or of other stages."""

import difflib
import pickle
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.models import load_state_dict
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, round_channels
from timm.models.efficientnet import _create_effnet, _gen_efficientnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from configs import schema
from configs.problems import ConfigError, DataError, Problem, shown
from configs.run import RunDirectory
from configs.schema import Config
from trainer.checkpoint_files import load_weights
from trainer.checkpoints import CheckpointDirectory
from trainer.logs import logger
from trainer.squeeze_excite import keep_layout

CLASSIFIER = "classifier."
B0_IMAGE_SIZE = 224


def build_network(config: Config, *, restored: bool = False) -> nn.Module:
    """An EfficientNet of timm with `config`'s head: images (N, in_chans, H, W) float to logits (N, num_classes).

    Args:
        config: What to build.
        restored: A checkpoint's weights follow, so that those to start from are neither downloaded nor read.

    Raises:
        ConfigError: If timm has no such EfficientNet, no weights for it, or a setting has no effect on it.
        DataError: If `model.checkpoint_path` holds no weights, or those of another network.
    """
    model = config.model
    check_name(model.name)
    if model.pretrained and not timm.is_model_pretrained(model.name):
        others = [name for name in efficientnets() if model.name in name and timm.is_model_pretrained(name)]
        accepted = " or ".join([f"false for {model.name}, whose weights nobody published", *others])
        raise ConfigError([Problem(key="model.pretrained", received="true", accepted=accepted)])
    arguments: dict[str, Any] = {
        "num_classes": config.data.num_classes,
        "in_chans": model.in_chans,
        "drop_rate": model.drop_rate,
        "drop_path_rate": model.drop_path_rate,
    }
    scaling = config.width_and_depth
    if model.stages:
        network = from_stages(stage_strings(model), *(scaling or (1.0, 1.0)), **arguments)
    elif scaling is None:
        network = timm.create_model(model.name, pretrained=model.pretrained and not restored, **arguments)
    else:
        # timm fixes the multipliers in its public functions; this is the one they all call.
        width, depth = scaling
        network = _gen_efficientnet(
            "efficientnet_b0", channel_multiplier=width, depth_multiplier=depth, pretrained=False, **arguments
        )
    assert isinstance(network, nn.Module)
    _set_batchnorm(network, model)
    _keep_inputs(network)
    if config.trainer.compile is None:  # which writes kernels of its own
        keep_layout(network)
    if model.head_hidden_features is not None:
        network.classifier = nn.Sequential(
            nn.Linear(int(network.num_features), model.head_hidden_features),  # type: ignore[arg-type]
            nn.ReLU(inplace=True),
            nn.Linear(model.head_hidden_features, config.data.num_classes),
        )
    if model.checkpoint_path is not None and not restored:
        _load_weights(network, Path(model.checkpoint_path))
    return network


def stage_strings(model: schema.Model) -> list[str]:
    """`model.stages` in timm's notation, such as `ir_r2_k5_s2_e6_c40_se0.25`."""
    return [
        f"{stage.block}_r{stage.repeats}_k{stage.kernel_size}_s{stage.stride}"
        + (f"_e{stage.expansion:g}" if stage.block in ("ir", "er") else "_e1" if stage.block == "ds" else "")
        + f"_c{stage.channels}"
        + (f"_se{stage.se_ratio:g}" if stage.se_ratio and stage.block != "cn" else "")
        for stage in model.stages
    ]


def from_stages(stages: list[str], width: float, depth: float, **arguments: Any) -> nn.Module:
    """EfficientNet-B0 with other stages, in timm's notation, scaled by multipliers of channels and repeats.

    What timm's _gen_efficientnet does, in which the stages are fixed.
    """
    channels = partial(round_channels, multiplier=width, divisor=8)
    network: nn.Module = _create_effnet(
        "efficientnet_b0",
        pretrained=False,
        block_args=decode_arch_def([[stage] for stage in stages], depth),
        num_features=channels(1280),
        stem_size=32,
        round_chs_fn=channels,
        act_layer=resolve_act_layer({}, "swish"),
        norm_layer=nn.BatchNorm2d,
        **arguments,
    )
    return network


def efficientnets() -> list[str]:
    """Names of all EfficientNets that timm builds."""
    return [name for name in timm.list_models(module="efficientnet") if "efficientnet" in name]


def check_name(name: str) -> None:
    """Refuse what is no EfficientNet of timm; a tag of published weights may follow a dot.

    Raises:
        ConfigError: With the names that are close.
    """
    known = efficientnets()
    family, dot, _ = name.partition(".")
    if dot and family in known:
        known = timm.list_pretrained(f"{family}.*")
    if name not in known:
        accepted = f"an EfficientNet of timm: {close_names(name, known)}"
        raise ConfigError([Problem(key="model.name", received=shown(name), accepted=accepted)])


def close_names(name: str, known: list[str]) -> str:
    """The names that somebody may have meant, for a message."""
    found = difflib.get_close_matches(name, known, n=3)
    return f"did you mean {' or '.join(found)}?" if found else f"{', '.join(known[:3])}, …"


def _set_batchnorm(network: nn.Module, model: schema.Model) -> None:
    """Set momentum and epsilon of all BatchNorm layers, where given.

    Raises:
        ConfigError: If they are given and there is no such layer.
    """
    given = {key: value for key in ("bn_momentum", "bn_eps") if (value := getattr(model, key)) is not None}
    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    if given and not layers:
        accepted = f"null: {model.name} has no BatchNorm"
        raise ConfigError(
            [Problem(key=f"model.{key}", received=shown(value), accepted=accepted) for key, value in given.items()]
        )
    for layer in layers:
        layer.momentum = given.get("bn_momentum", layer.momentum)
        layer.eps = given.get("bn_eps", layer.eps)


def _keep_inputs(network: nn.Module) -> None:
    """Have activations leave alone what their gradient is computed from.

    timm has them overwrite it, so that autograd makes a copy before each: the same memory, and one pass more over it.
    """
    for module in network.modules():
        if isinstance(module, (nn.SiLU, nn.Hardswish, nn.Hardtanh, nn.Mish)):
            module.inplace = False


def image_size(config: Config) -> int:
    """Side in pixels of the network's input: what is set, else 224 x 1.15^phi, else timm's for that model."""
    if config.data.image_size is not None:
        return config.data.image_size
    if config.model.compound_phi is not None:
        return round(float(B0_IMAGE_SIZE * 1.15**config.model.compound_phi))
    check_name(config.model.name)
    pretrained = timm.get_pretrained_cfg(config.model.name)
    return int(pretrained.input_size[-1]) if pretrained is not None else B0_IMAGE_SIZE


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load all but a classifier of another shape.

    Raises:
        DataError: If the file is missing or its weights do not fit.
    """
    state, own = read_weights(path, key="model.checkpoint_path"), network.state_dict()
    heads = {key for key in own | state if key.startswith(CLASSIFIER)}
    if any(key not in own or key not in state or own[key].shape != state[key].shape for key in heads):
        logger.warning("model.checkpoint_path %s has another classifier: it is left at its initial values", path)
        state = {key: value for key, value in state.items() if key not in heads}
        own = {key: value for key, value in own.items() if key not in heads}
    # Old files lack the counters, which have no effect.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    shapes = [key for key in own if key in state and own[key].shape != state[key].shape]
    if missing or unexpected or shapes:
        raise DataError(
            f"model.checkpoint_path {path} is of another network: missing {missing[:3]}, unexpected {unexpected[:3]}, "
            f"of another shape {shapes[:3]}"
        )
    network.load_state_dict(state, strict=False)


def read_weights(path: Path, *, key: str, use_ema: bool = True) -> dict[str, torch.Tensor]:
    """Tensors by name from a safetensors file or a pickle, whose code is not run, or from a run or a checkpoint.

    Args:
        path: Of the file or the folder.
        key: What to call it in messages.
        use_ema: Take averaged weights, where there are some.

    Raises:
        DataError: If the file is missing or holds anything else, or no checkpoint verifies.
    """
    if path.is_dir():
        run = RunDirectory(path)
        found = CheckpointDirectory(run.checkpoints).chosen(None) if run.checkpoints.is_dir() else path
        kinds = load_weights(found)
        averaged = use_ema and "ema" in kinds
        logger.info("%s: %s weights of %s", key, "averaged" if averaged else "raw", found)
        return kinds["ema" if averaged else "raw"]
    if not path.is_file():
        raise DataError(f"{key} {path} is neither a file nor a folder")
    try:
        state: dict[str, torch.Tensor] = load_state_dict(str(path), use_ema=use_ema, weights_only=True)
    # What timm, torch and safetensors raise for a file that is damaged, or is no file of weights.
    except (RuntimeError, ValueError, TypeError, AttributeError, EOFError, SafetensorError) as error:
        if isinstance(error.__cause__, pickle.UnpicklingError):
            raise DataError(
                f"{key} {path} holds more than tensors and plain values, and code in it is not run: "
                "save its state_dict alone, or as safetensors"
            ) from None
        raise DataError(f"{key} {path} holds no weights that can be read: {error}") from None
    if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise DataError(f"{key} {path} holds no weights by name")
    return state
