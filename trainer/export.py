"""``python -m trainer export``: a run's weights as a file that plain timm loads."""

import json
from pathlib import Path

from rich.console import Console
from safetensors.torch import save_file

from configs.run import RunDirectory, write_atomically
from configs.schema import Config
from datamodules.streaming.transforms import channel_statistics
from trainer.checkpoint_files import load_weights, read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.network import image_size, stage_strings


def export(run: RunDirectory, *, checkpoint: Path | None, out_dir: Path | None, raw: bool, console: Console) -> Path:
    """Write ``model.safetensors`` and ``config.json``; the averaged weights where there are any, unless ``raw``.

    Raises:
        DataError: If the run has no checkpoint that verifies.
    """
    config = run.load_config()
    path = CheckpointDirectory(run.checkpoints).chosen(checkpoint)
    weights = load_weights(path)
    kind = "raw" if raw or "ema" not in weights else "ema"
    target = out_dir or run.path / "export"
    target.mkdir(parents=True, exist_ok=True)
    file = target / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights[kind].items()}, file)
    mean, std = channel_statistics(config.data, config.model.in_chans)
    size, step = image_size(config), read_manifest(path)["step"]
    description = {
        "architecture": config.model.name,
        "num_classes": config.data.num_classes,
        "pretrained_cfg": {
            "input_size": [config.model.in_chans, size, size],
            "interpolation": "bicubic" if config.data.interpolation == "random" else config.data.interpolation,
            "crop_pct": config.data.crop_pct,
            "mean": mean,
            "std": std,
        },
        "effnet": {"weights": kind, "step": step, "run_id": run.run_id},
    }
    write_atomically(target / "config.json", json.dumps(description, indent=2) + "\n")
    lines = [f"{kind} weights of step {step}: {file}"]
    lines += _how_to_load(config, file)
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return file


def _how_to_load(config: Config, file: Path) -> list[str]:
    """Lines of Python that make the network with its weights as ``model``, from timm and torch alone."""
    model, weights = config.model, repr(str(file))
    arguments = f"num_classes={config.data.num_classes}, in_chans={model.in_chans}"
    if model.bn_eps is not None:
        arguments += f", bn_eps={model.bn_eps!r}"
    if config.width_and_depth is None and model.head_hidden_features is None and not model.stages:
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
