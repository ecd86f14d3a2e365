"""``python -m trainer export``: a run's weights as files that timm, ONNX Runtime and plain torch load."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import save

from configs.files import write_atomically
from configs.problems import DataError
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.bars import Advance, Bar, progress_on
from datamodules.inspecting.shards import names_of_classes
from datamodules.streaming.picked import picked_batches
from trainer.assembly import build_module
from trainer.checkpoints import CheckpointDirectory
from trainer.exporting.batchnorm import estimate
from trainer.exporting.graphs import write_program, write_torchscript
from trainer.exporting.model_card import as_json, copy_curves, model_card, statistics
from trainer.exporting.onnx_files import require_onnx, write_onnx
from trainer.exporting.quantising import Measured, measure, quantise
from trainer.exporting.timm_layout import description, drawing, how_to_load, preprocessing, timm_builds
from trainer.exporting.weights import Weights, choose_weights
from trainer.module import EfficientNetModule
from trainer.network import image_size

WEIGHTS, DESCRIPTION, CARD = "model.safetensors", "config.json", "README.md"
ONNX, ONNX_INT8, PROGRAM, TORCHSCRIPT = "model.onnx", "model.int8.onnx", "model.pt2", "model.torchscript.pt"
COMPARISON = "onnx.json"
LOCAL_DIR = ["model = timm.create_model('local-dir:.', pretrained=True)  # or 'hf-hub:NAME', once it is there"]
GRAPHS = {
    "onnx": (ONNX, write_onnx, "ONNX"),
    "torch-export": (PROGRAM, write_program, "torch.export"),
    "torchscript": (TORCHSCRIPT, write_torchscript, "TorchScript"),
}
TOLERANCE = 1e-3
"""Of fp32: rounding in another order gave 3e-6 of the largest logit (28 November 2026)."""
CALIBRATION_SAMPLES, TEST_SAMPLES = 512, 5000


def export(
    run: RunDirectory,
    *,
    out_dir: Path | None,
    raw: bool,
    console: Console,
    checkpoint: Path | Sequence[Path] | None = None,
    average: int | None = None,
    formats: Sequence[str] = (),
    tolerance: float = TOLERANCE,
    calibration_samples: int = CALIBRATION_SAMPLES,
    test_samples: int = TEST_SAMPLES,
    bn_samples: int | None = None,
    progress: Console | None = None,
) -> Path:
    """Write ``model.safetensors``, ``config.json``, a model card, and the graphs that are asked for.

    Args:
        run: Whose weights: their average over training steps where there is one, unless ``raw``.
        out_dir: Folder to write to; None is the run's ``export``.
        raw: The raw weights.
        console: To print on.
        checkpoint: Directory of one; of several, their mean. None is the newest.
        average: Mean over so many of the newest; None takes one.
        formats: Of ``onnx``, ``onnx-int8`` (which writes both), ``torch-export``, ``torchscript``.
        tolerance: Largest difference of a graph's logits to the network's, as a share of the largest logit.
        calibration_samples: Training images that set the ranges of int8.
        test_samples: Most validation images on which int8 is set beside fp32.
        bn_samples: Training images over which BatchNorm's statistics of a mean over checkpoints are estimated anew;
            None takes the mean of theirs.
        progress: To show progress on; None is ``console``.

    Returns:
        The file of weights.

    Raises:
        DataError: If no checkpoint verifies, a package is missing, a graph does not agree, or images cannot be read.
        UnreachableError: If a server with images does not answer.
    """
    config = run.load_config()
    quantised = "onnx-int8" in formats
    if quantised or "onnx" in formats:
        require_onnx()
    checkpoints = [checkpoint] if isinstance(checkpoint, Path) else list(checkpoint or ())
    weights = choose_weights(CheckpointDirectory(run.checkpoints), checkpoints, average=average, raw=raw)
    module, bar = _evaluated(config, weights), progress_on(progress or console)
    if bn_samples is not None:
        weights = _estimated(config, module, weights, bn_samples, bar)
    target = out_dir or run.path / "export"
    target.mkdir(parents=True, exist_ok=True)
    _remove_graphs(target)
    file = target / WEIGHTS
    # By no function of safetensors': its file is for the user alone, whatever umask says.
    file.write_bytes(save({name: tensor.contiguous() for name, tensor in weights.state.items()}))
    provenance = {"weights": weights.kind, "step": weights.steps[0], "run_id": run.run_id, **drawing(config)}
    if len(weights.steps) > 1:
        provenance["mean_over_steps"] = list(weights.steps)
        provenance["batchnorm_estimated_over"] = weights.statistics_of
    classes = names_of_classes(config.data)
    features = int(module.network.num_features)  # type: ignore[arg-type]
    about = description(config, num_features=features, classes=classes, provenance=provenance)
    write_atomically(target / DESCRIPTION, json.dumps(about, indent=2, ensure_ascii=False) + "\n")
    steps = ", ".join(map(str, weights.steps))
    what = f"mean over steps {steps}" if len(weights.steps) > 1 else f"step {steps}"
    _say(console, f"{weights.kind} weights of {what}: {file}", *how_to_load(config, file))
    if len(weights.steps) > 1:
        hint = "" if weights.statistics_of else " (--bn-samples N does)"
        _say(console, f"{statistics(weights)}{hint}")

    files = {WEIGHTS: "weights" + (", as timm names them" if timm_builds(config) else "")}
    files |= {DESCRIPTION: "architecture, classes, preprocessing, in timm's form"}
    metadata = {**preprocessing(config), "class_names": classes, **provenance}
    for name in [each for each in GRAPHS if each in formats or (each == "onnx" and quantised)]:
        graph, write, title = GRAPHS[name]
        size = tuple(preprocessing(config)["input_size"])
        difference = write(module.network, target / graph, about=metadata, input_size=size, tolerance=tolerance)
        files[graph] = f"{title} graph: `images` (N, {', '.join(map(str, size))}) float32, normalised, to `logits`"
        _say(console, f"{title}: {target / graph}: {difference}")
    measured: list[Measured] = []
    if quantised:
        with bar("calibrating int8", calibration_samples) as advance:
            images = _images(config, module, config.data.train_shards, calibration_samples, advance)
            quantise(target / ONNX, target / ONNX_INT8, (each for each, _ in images))
        with bar("int8 beside fp32", test_samples) as advance:
            tested = _images(config, module, config.data.val_shards, test_samples, advance)
            measured = measure([target / ONNX, target / ONNX_INT8], tested)
        write_atomically(target / COMPARISON, as_json(measured))
        files[ONNX_INT8] = f"the same in 8 bits, calibrated on up to {calibration_samples} training images"
        files[COMPARISON] = "size, speed and top-1 of both, as JSON"
        console.print(_comparison(measured))
    card = model_card(
        run,
        config,
        weights,
        how_to_load=LOCAL_DIR if timm_builds(config) else how_to_load(config, Path(WEIGHTS)),
        classes=classes,
        parameters=sum(parameter.numel() for parameter in module.network.parameters()),
        files=files,
        measured=measured,
        curves=copy_curves(run, target),
    )
    write_atomically(target / CARD, card)
    return file


def _evaluated(config: Config, weights: Weights) -> EfficientNetModule:
    """The network in evaluation mode on the CPU, in fp32, as plain as timm builds it."""
    torch.set_num_threads(config.trainer.num_threads or os.cpu_count() or 1)
    plain = {"compile": None, "channels_last": False, "gradient_checkpointing": False}
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update=plain)})
    module = build_module(config, restored=True)
    module.network.load_state_dict(weights.state)
    module.eval().requires_grad_(requires_grad=False)
    return module


def _estimated(config: Config, module: EfficientNetModule, weights: Weights, samples: int, bar: Bar) -> Weights:
    """The weights with BatchNorm's statistics of their own, which the module has then too.

    Raises:
        DataError: If they are not a mean, which has statistics of its own, or the training shards are not at hand.
    """
    if len(weights.steps) == 1:
        raise DataError("--bn-samples is for a mean over checkpoints: one has statistics of its own")
    shape = {"image_size": image_size(config), "in_chans": config.model.in_chans, "seed": config.seed}
    with bar("BatchNorm's statistics", samples) as advance:
        found = estimate(module, picked_batches(config.data, config.data.train_shards, samples, **shape), advance)
    return weights._replace(state=module.network.state_dict(), statistics_of=found)


def _images(
    config: Config, module: EfficientNetModule, shards: str | tuple[str, ...], count: int, advance: Advance
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    channels, size, _ = preprocessing(config)["input_size"]
    for batch in picked_batches(config.data, shards, count, image_size=size, in_chans=channels):
        yield module.normalise(batch.images), batch.targets
        advance(len(batch.targets))


def _remove_graphs(folder: Path) -> None:
    """Those of an export before this one are of other weights."""
    for name in (ONNX, ONNX_INT8, PROGRAM, TORCHSCRIPT, COMPARISON):
        (folder / name).unlink(missing_ok=True)


def _comparison(measured: Sequence[Measured]) -> Table:
    title = f"{measured[0].samples:,} validation samples, {measured[0].batch_size} at once, CPU"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("ONNX Runtime")
    for name in ("MB", "images/s", "top-1"):
        table.add_column(name, justify="right")
    for each in measured:
        table.add_row(each.file, f"{each.megabytes:.2f}", f"{each.images_per_second:,.0f}", f"{each.top1:.4f}")
    return table


def _say(console: Console, *lines: str) -> None:
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
