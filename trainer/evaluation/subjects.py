"""What is evaluated: a run's checkpoint, a model of timm's with its published weights, or a file of weights."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from timm.data import resolve_model_data_config
from timm.models import parse_model_name, split_model_name_tag
from torch import nn

from configs.load import load_config
from configs.problems import ConfigError, DataError, Problem, UnreachableError
from configs.run import RunDirectory
from configs.schema import Config
from trainer.assembly import build_module
from trainer.checkpoint_files import load_weights, read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.module import EfficientNetModule
from trainer.network import close_names, image_size, read_weights


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A network with its weights, and how it wants its images.

    Attributes:
        name: Of the run, of timm's model, or of the file.
        config: Of the run; or one that has the network's channels, normalisation, size and crop.
        module: With the raw weights, and their average where there is one.
        num_classes: That it tells apart.
        image_size: Side in pixels, where no other is asked for.
        checkpoint: The directory or file; None for weights that timm publishes.
        step: Optimizer steps that it was trained for, where a run says so.
    """

    name: str
    config: Config
    module: EfficientNetModule
    num_classes: int
    image_size: int
    checkpoint: Path | None = None
    step: int | None = None


def of_run(run: RunDirectory, checkpoint: Path | None, overrides: Sequence[str]) -> Subject:
    """A run's weights; those of the newest checkpoint, if none is named.

    Raises:
        ConfigError: For mistakes in ``overrides``.
        DataError: If the run has no checkpoint that verifies.
    """
    config = load_config([str(run.config_file)], overrides).config
    path = CheckpointDirectory(run.checkpoints).chosen(checkpoint)
    weights = load_weights(path)
    module = build_module(config, restored=True)
    module.network.load_state_dict(weights["raw"])
    if "ema" in weights:
        average = copy.deepcopy(module.network)
        average.load_state_dict(weights["ema"])
        module.set_average(average)
    return Subject(
        name=run.run_id,
        config=config,
        module=module,
        num_classes=config.data.num_classes,
        image_size=config.data.eval_image_size or image_size(config),
        checkpoint=path,
        step=read_manifest(path)["step"],
    )


def of_timm(name: str, overrides: Sequence[str]) -> Subject:
    """A model as ``timm.create_model(name, pretrained=True)`` makes it, with the preprocessing of its test figures.

    Args:
        name: One of timm's, or ``hf-hub:…`` or ``local-dir:…``.
        overrides: Of settings of data and trainer.

    Raises:
        ConfigError: If timm has no such model, or no weights of it, or its images are cut as no setting says.
        UnreachableError: If its weights are not here and cannot be downloaded.
    """
    _check_name(name, pretrained=True)
    try:
        network = timm.create_model(name, pretrained=True)
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:  # of a file, or a configuration, in it
        raise DataError(f"timm makes no model of {name}: {error}") from None
    except OSError as error:
        if name.startswith("local-dir:"):
            raise DataError(f"timm makes no model of {name}: {error}") from None
        raise UnreachableError(f"the weights of {name} are not here and cannot be downloaded: {error}") from error
    return _of_network(name, network, overrides)


def of_file(file: Path, model: str, overrides: Sequence[str]) -> Subject:
    """A network of timm's with the weights of a file, and their average if the file has both; no code is run.

    The classifier's size and the channels are those of the file.

    Args:
        file: In safetensors, or a pickle of tensors and plain values.
        model: Name of the network.
        overrides: Of settings of data and trainer.

    Raises:
        ConfigError: If timm has no such model.
        DataError: If the file holds no weights, or those of another network.
    """
    _check_name(model, pretrained=False)
    averaged = read_weights(file, key="file")
    try:
        raw = read_weights(file, key="file", use_ema=False)
    except DataError:  # the average alone is there
        raw = averaged
    subject = _of_network(file.name, _filled(model, raw, file), overrides, checkpoint=file)
    if any(not torch.equal(averaged[key], value) for key, value in raw.items() if key in averaged):
        subject.module.set_average(_filled(model, averaged, file))
    return subject


def _filled(model: str, state: dict[str, torch.Tensor], file: Path) -> nn.Module:
    """The network with these weights.

    Raises:
        DataError: If they are of another one.
    """
    known = timm.get_pretrained_cfg(model)
    arguments: dict[str, Any] = {}
    if known is not None:
        layers = ((known.classifier, "num_classes", 0), (known.first_conv, "in_chans", 1))
        for layer, argument, dimension in layers:
            tensor = state.get(f"{layer}.weight")
            if tensor is not None and tensor.ndim > dimension:
                arguments[argument] = tensor.shape[dimension]
    network = timm.create_model(model, pretrained=False, **arguments)
    assert isinstance(network, nn.Module)
    # Old files lack the counters, which have no effect.
    own = network.state_dict()
    counters = {key: value for key, value in own.items() if key.endswith("num_batches_tracked")}
    try:
        network.load_state_dict(counters | state)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise DataError(f"{file} is of another network than {model}: {' '.join(lines[1:3]).strip()[:300]}") from None
    return network


def _of_network(name: str, network: nn.Module, overrides: Sequence[str], checkpoint: Path | None = None) -> Subject:
    """With its own preprocessing, that of its test figures.

    Raises:
        ConfigError: If that is none that the loader knows, or ``overrides`` are wrong.
    """
    wanted = resolve_model_data_config(network, use_test_size=True)
    _, height, width = wanted["input_size"]
    channels = _channels(network)
    accepted = {
        "interpolation": (wanted["interpolation"], ("bilinear", "bicubic")),
        "crop_mode": (wanted["crop_mode"], ("center",)),
        "input_size": (width, (height,)),
        "in_chans": (channels, (1, 3, 4)),
    }
    problems = [
        Problem(key=f"MODEL ({key})", received=str(value), accepted=" or ".join(map(str, values)))
        for key, (value, values) in accepted.items()
        if value not in values
    ]
    if problems:
        raise ConfigError(problems)
    num_classes = int(network.num_classes)  # type: ignore[arg-type]
    settings = {
        "data.train_shards": "none",
        "data.val_shards": "none",
        "data.num_classes": num_classes,
        "data.image_size": height,
        "data.crop_pct": wanted["crop_pct"],
        "data.interpolation": wanted["interpolation"],
        "data.mean": _for_channels(wanted["mean"], channels),
        "data.std": _for_channels(wanted["std"], channels),
        "data.augmentation.auto_augment": "null",
        "model.in_chans": channels,
        "tracking.mode": "disabled",
    }
    given = [f"{key}={value}" for key, value in settings.items()]
    config = load_config([], [*given, *overrides]).config
    if config.trainer.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if config.trainer.compile is not None:
        network.compile(mode=config.trainer.compile, dynamic=False)
    return Subject(
        name=name,
        config=config,
        module=EfficientNetModule(config, network),
        num_classes=num_classes,
        image_size=height,
        checkpoint=checkpoint,
    )


def _channels(network: nn.Module) -> int:
    """Of its images: what timm says of a model may be of other ones than this was made for."""
    cfg: Any = network.pretrained_cfg
    first = cfg.get("first_conv")
    if isinstance(first, str):
        return int(network.get_parameter(f"{first}.weight").shape[1])
    return int(cfg["input_size"][0])


def _for_channels(values: Sequence[float], channels: int) -> list[float]:
    """As they are, or their mean for each of other channels."""
    return list(values) if len(values) == channels else [sum(values) / len(values)] * channels


def _check_name(name: str, *, pretrained: bool) -> None:
    """See that timm knows the name.

    Raises:
        ConfigError: If it does not, or publishes no weights where these are wanted.
    """
    try:
        source, model = parse_model_name(name)
    except ValueError as error:
        raise ConfigError([Problem(key="MODEL", received=name, accepted=str(error))]) from None
    if source == "local-dir":
        if not (Path(model) / "config.json").is_file():
            accepted = "local-dir: and a folder with a config.json and weights, as timm saves them"
            raise ConfigError([Problem(key="MODEL", received=name, accepted=accepted)])
        return
    if source is not None:
        return
    architecture, tag = split_model_name_tag(model)
    known = timm.list_models()
    if architecture not in known:
        accepted = f"a model of timm: {close_names(architecture, known)}"
        raise ConfigError([Problem(key="MODEL", received=name, accepted=accepted)])
    tagged = timm.list_pretrained(f"{architecture}.*") if pretrained else []
    if pretrained and (model not in tagged if tag else not tagged):
        accepted = f"{close_names(model, tagged)}" if tagged else f"a file of weights: nobody published any of {name}"
        raise ConfigError([Problem(key="MODEL", received=name, accepted=accepted)])
