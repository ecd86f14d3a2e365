"""The network of a configuration, built by timm: a published EfficientNet or B0 scaled by any multipliers."""

from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import load_state_dict
from timm.models.efficientnet import _gen_efficientnet
from torch import nn

from configs.problems import DataError
from configs.schema import Config

CLASSIFIER = "classifier."
B0_IMAGE_SIZE = 224


def build_network(config: Config) -> nn.Module:
    """An EfficientNet of timm with `config`'s head: images (N, in_chans, H, W) float to logits (N, num_classes).

    Raises:
        DataError: If `model.checkpoint_path` holds weights of another network.
    """
    model = config.model
    arguments: dict[str, Any] = {
        "num_classes": config.data.num_classes,
        "in_chans": model.in_chans,
        "drop_rate": model.drop_rate,
        "drop_path_rate": model.drop_path_rate,
    }
    arguments |= {
        key: value for key, value in (("bn_momentum", model.bn_momentum), ("bn_eps", model.bn_eps)) if value is not None
    }
    scaling = config.width_and_depth
    if scaling is None:
        network = timm.create_model(model.name, pretrained=model.pretrained, **arguments)
    else:
        # timm fixes the multipliers in its public functions; this is the one they all call.
        width, depth = scaling
        network = _gen_efficientnet(
            "efficientnet_b0", channel_multiplier=width, depth_multiplier=depth, pretrained=False, **arguments
        )
    assert isinstance(network, nn.Module)
    if model.head_hidden_features is not None:
        network.classifier = nn.Sequential(
            nn.Linear(int(network.num_features), model.head_hidden_features),  # type: ignore[arg-type]
            nn.ReLU(inplace=True),
            nn.Linear(model.head_hidden_features, config.data.num_classes),
        )
    if model.checkpoint_path is not None:
        _load_weights(network, Path(model.checkpoint_path))
    return network


def image_size(config: Config) -> int:
    """Side in pixels of the network's input: what is set, else 224 x 1.15^phi, else timm's for that model."""
    if config.data.image_size is not None:
        return config.data.image_size
    if config.model.compound_phi is not None:
        return round(float(B0_IMAGE_SIZE * 1.15**config.model.compound_phi))
    pretrained = timm.get_pretrained_cfg(config.model.name)
    return int(pretrained.input_size[-1]) if pretrained is not None else B0_IMAGE_SIZE


def _load_weights(network: nn.Module, path: Path) -> None:
    """Load all but a classifier of another shape.

    Raises:
        DataError: If the file is missing or its weights do not fit.
    """
    if not path.is_file():
        raise DataError(f"model.checkpoint_path {path} is not a file")
    state: dict[str, torch.Tensor] = load_state_dict(str(path), use_ema=True, weights_only=True)
    own = network.state_dict()
    heads = {key for key in own | state if key.startswith(CLASSIFIER)}
    fits = all(key in own and key in state and own[key].shape == state[key].shape for key in heads)
    if not fits:
        state = {key: value for key, value in state.items() if key not in heads}
    try:
        missing, unexpected = network.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise DataError(f"model.checkpoint_path {path}: {error}") from None
    missing = [key for key in missing if key not in heads or fits]
    if missing or unexpected:
        raise DataError(
            f"model.checkpoint_path {path} is of another network: missing {missing[:3]}, unexpected {unexpected[:3]}"
        )
