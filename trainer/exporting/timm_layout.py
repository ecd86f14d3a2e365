"""The description of an exported network: ``config.json`` as timm and Hugging Face read it, and code that loads it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from configs.schema import Config
from datamodules.streaming.transforms import channel_statistics, shown_share
from trainer.network import image_size, stage_strings


def preprocessing(config: Config) -> dict[str, Any]:
    """How evaluation prepares an image, in timm's words: resize, centre crop, scale to 0..1, normalise.

    Of another modality the image is the picture that is drawn, in the size that the network takes.
    """
    mean, std = channel_statistics(config.data, config.model.in_chans)
    size = config.data.eval_image_size or image_size(config)
    return {
        "input_size": [config.model.in_chans, size, size],
        "interpolation": "bicubic" if config.data.interpolation == "random" else config.data.interpolation,
        "crop_pct": shown_share(config.data),
        "mean": list(mean),
        "std": list(std),
    }


def drawing(config: Config) -> dict[str, Any]:
    """Of another modality than images, which it is, and the settings by which pictures are drawn; nothing of images."""
    modality = config.data.modality
    if modality == "image":
        return {}
    return {"modality": modality, modality: getattr(config.data, modality).model_dump(mode="json")}


def description(
    config: Config, *, num_features: int, classes: Sequence[str] | None, provenance: dict[str, Any]
) -> dict[str, Any]:
    """What ``config.json`` holds.

    Args:
        config: Of the run.
        num_features: That the classifier takes.
        classes: Their names, by label.
        provenance: Where the weights come from.
    """
    arguments: dict[str, Any] = {"in_chans": config.model.in_chans} if config.model.in_chans != 3 else {}
    if config.model.bn_eps is not None:
        arguments["bn_eps"] = config.model.bn_eps
    return {
        "architecture": config.model.name,
        "num_classes": config.data.num_classes,
        "num_features": num_features,
        "global_pool": "avg",
        **({"model_args": arguments} if arguments else {}),
        **({"label_names": list(classes)} if classes is not None else {}),
        "pretrained_cfg": preprocessing(config),
        "effnet": provenance,
    }


def timm_builds(config: Config) -> bool:
    """Whether timm has the network under a name, and so reads the folder as ``local-dir:`` or from the Hub."""
    model = config.model
    return config.width_and_depth is None and model.head_hidden_features is None and not model.stages


def how_to_load(config: Config, file: Path) -> list[str]:
    """Lines of Python that make the network with its weights as ``model``, from timm and torch alone."""
    model, weights = config.model, repr(str(file))
    arguments = f"num_classes={config.data.num_classes}, in_chans={model.in_chans}"
    if model.bn_eps is not None:
        arguments += f", bn_eps={model.bn_eps!r}"
    if timm_builds(config):
        return [f"model = timm.create_model({model.name!r}, {arguments}, checkpoint_path={weights})"]
    if model.stages:
        width, depth = config.width_and_depth or (1.0, 1.0)
        lines = [
            "import functools",
            "from timm.models import _efficientnet_builder as builder, efficientnet",
            f"channels = functools.partial(builder.round_channels, multiplier={width!r}, divisor=8)",
            "model = efficientnet._create_effnet('efficientnet_b0', stem_size=32, num_features=channels(1280), "
            f"block_args=builder.decode_arch_def({[[stage] for stage in stage_strings(model)]}, {depth!r}), "
            "round_chs_fn=channels, act_layer=builder.resolve_act_layer({}, 'swish'), norm_layer=torch.nn.BatchNorm2d, "
            f"{arguments})",
        ]
    elif config.width_and_depth is None:
        lines = [f"model = timm.create_model({model.name!r}, {arguments})"]
    else:
        width, depth = config.width_and_depth
        lines = [
            f"model = timm.models.efficientnet._gen_efficientnet('efficientnet_b0', channel_multiplier={width!r}, "
            f"depth_multiplier={depth!r}, {arguments})"
        ]
    if model.head_hidden_features is not None:
        hidden, classes = model.head_hidden_features, config.data.num_classes
        lines += [
            f"model.classifier = torch.nn.Sequential(torch.nn.Linear(model.num_features, {hidden}), torch.nn.ReLU(), "
            f"torch.nn.Linear({hidden}, {classes}))"
        ]
    return [*lines, f"timm.models.load_checkpoint(model, {weights})"]
