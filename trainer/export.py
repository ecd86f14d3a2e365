"""``python -m trainer export``: a run's weights as a file that plain timm loads."""

import json
from pathlib import Path

from rich.console import Console
from safetensors.torch import save_file

from configs.problems import DataError
from configs.run import RunDirectory, write_atomically
from datamodules.transforms import channel_statistics
from trainer.checkpoints import CheckpointDirectory, load_weights, read_manifest
from trainer.network import image_size


def export(run: RunDirectory, *, checkpoint: Path | None, out_dir: Path | None, raw: bool, console: Console) -> Path:
    """Write ``model.safetensors`` and ``config.json``; the averaged weights where there are any, unless ``raw``.

    Raises:
        DataError: If the run has no checkpoint that verifies.
    """
    config = run.load_config()
    path = checkpoint or CheckpointDirectory(run.checkpoints).newest()
    if path is None:
        raise DataError(f"{run.path} has no checkpoint that verifies")
    weights = load_weights(path)
    kind = "raw" if raw or "ema" not in weights else "ema"
    target = out_dir or run.path / "export"
    target.mkdir(parents=True, exist_ok=True)
    file = target / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in weights[kind].items()}, file)
    mean, std = channel_statistics(config.data, config.model.in_chans)
    size = image_size(config)
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
        "effnet": {"weights": kind, "step": read_manifest(path)["step"], "run_id": run.run_id},
    }
    write_atomically(target / "config.json", json.dumps(description, indent=2) + "\n")
    console.print(f"{kind} weights of step {description['effnet']['step']}: {file}", highlight=False)  # type: ignore[index]
    console.print(
        _how_to_load(config.model.name, config.data.num_classes, file, config.width_and_depth), highlight=False
    )
    if config.model.head_hidden_features is not None:
        console.print("the hidden layer of the head is no part of timm: set network.classifier before loading")
    return file


def _how_to_load(name: str, num_classes: int, file: Path, scaling: tuple[float, float] | None) -> str:
    if scaling is None:
        return f"timm.create_model({name!r}, num_classes={num_classes}, checkpoint_path={str(file)!r})"
    width, depth = scaling
    return (
        f"timm.models.efficientnet._gen_efficientnet('efficientnet_b0', channel_multiplier={width!r}, "
        f"depth_multiplier={depth!r}, num_classes={num_classes}), then load_state_dict"
    )
