"""``README.md`` of an exported folder: a model card, with the header that the Hugging Face Hub reads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from configs.files import read_json
from configs.run import RunDirectory
from configs.schema import Config
from trainer.exporting.quantising import Measured
from trainer.exporting.timm_layout import drawing, preprocessing
from trainer.exporting.weights import Weights

CURVES = "curves.png"
HUB_METRICS = {"top1": ("accuracy", "top-1"), "top5": ("accuracy", "top-5")}
OF_THE_PLACE = {"runs_dir", "run_id", "tracking", "launch", "resume"}
"""Sections that say where a run was, and nothing of the network."""


def model_card(
    run: RunDirectory,
    config: Config,
    weights: Weights,
    *,
    how_to_load: Sequence[str],
    classes: Sequence[str] | None,
    parameters: int,
    files: Mapping[str, str],
    measured: Sequence[Measured],
    curves: bool,
) -> str:
    """Markdown of what was trained, how, on what, and how well it does.

    Args:
        run: Whose network.
        config: Of the run.
        weights: That were exported.
        how_to_load: Lines of Python.
        classes: Names by label.
        parameters: How many.
        files: What is beside the card, and what that is.
        measured: ONNX files beside one another.
        curves: Whether the curves of training are beside the card.
    """
    metrics = _metrics(weights)
    header = yaml.safe_dump(_header(run, config, metrics), sort_keys=False, allow_unicode=True)
    return "\n\n".join(
        [
            f"---\n{header}---",
            f"# {run.run_id}",
            _summary(run, config, weights, parameters, classes),
            "## Use\n\n```python\nimport timm, torch\n" + "\n".join(how_to_load) + "\nmodel.eval()\n```",
            "Images: " + _prepared(config, files),
            "## Files\n\n" + _table(("file", "holds"), list(files.items())),
            *_results(weights, metrics, _evaluations(run, weights), measured),
            *([f"## Training\n\n![Loss, accuracy, learning rate and throughput]({CURVES})"] if curves else []),
            "## Recipe\n\nWhat differs from effnet's defaults:\n\n```yaml\n" + _recipe(config) + "```",
        ]
    ) + "\n"  # fmt: skip


def _metrics(weights: Weights) -> dict[str, float]:
    """Of these weights: ``top1``, ``top5``, ``loss``."""
    prefix = "val/ema_" if weights.kind == "ema" else "val/"
    found = {name: weights.metrics.get(prefix + name) for name in ("top1", "top5", "loss")}
    return {name: value for name, value in found.items() if value is not None}


def _header(run: RunDirectory, config: Config, metrics: Mapping[str, float]) -> dict[str, Any]:
    header: dict[str, Any] = {
        "library_name": "timm",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "timm", "efficientnet", "effnet"],
    }
    values = [
        {"type": kind, "name": name, "value": metrics[key]}
        for key, (kind, name) in HUB_METRICS.items()
        if key in metrics
    ]
    if values:
        data = {"name": config.name, "type": config.name, "split": "validation"}
        task = {"type": "image-classification"}
        header["model-index"] = [
            {"name": run.run_id, "results": [{"task": task, "dataset": data, "metrics": values}]},
        ]
    return header


def _summary(
    run: RunDirectory, config: Config, weights: Weights, parameters: int, classes: Sequence[str] | None
) -> str:
    scaling = config.width_and_depth
    scaled = f" with stages of its own, scaled from {config.model.name}" if config.model.stages else ""
    if scaling is not None:
        scaled = f" scaled to width {scaling[0]:.3g} and depth {scaling[1]:.3g}"
    kind = "average over training steps" if weights.kind == "ema" else "raw"
    steps = ", ".join(map(str, weights.steps))
    which = (
        f"{kind}, of step {steps}"
        if len(weights.steps) == 1
        else f"{kind}, mean over steps {steps}; {statistics(weights)}"
    )
    rows = [
        ("network", f"{config.model.name}{scaled}, {parameters:,} parameters"),
        ("weights", which),
        ("classes", str(config.data.num_classes) + _some(classes)),
        ("training data", f"`{_shown(config.data.train_shards)}`"),
        ("validation data", f"`{_shown(config.data.val_shards)}`"),
        ("run", f"`{run.run_id}`"),
    ]
    return _table(("", ""), rows + _made_with(run))


def statistics(weights: Weights) -> str:
    """Where BatchNorm's statistics of a mean over checkpoints come from."""
    if weights.statistics_of is None:
        return "BatchNorm's statistics are the mean of theirs, not estimated anew"
    return f"BatchNorm's statistics estimated anew over {weights.statistics_of:,} training images"


def _made_with(run: RunDirectory) -> list[tuple[str, str]]:
    """Code and versions of the last attempt, as far as it has left word of them."""
    try:
        attempt = json.loads(run.environment_file.read_text(encoding="utf-8"))[-1]
        commit, packages = attempt["git_sha"], attempt["packages"]
    except (OSError, ValueError, LookupError, TypeError):
        return []
    changed = ", with uncommitted changes" if attempt.get("uncommitted_changes") else ""
    code = [("code", f"`{commit}`{changed}")] if commit else []
    return [*code, ("made with", ", ".join(f"{name} {packages.get(name)}" for name in ("torch", "timm")))]


def _some(classes: Sequence[str] | None) -> str:
    if classes is None:
        return ""
    return ": " + ", ".join(classes[:10]) + (", …" if len(classes) > 10 else "")


def _shown(shards: str | Sequence[str]) -> str:
    return shards if isinstance(shards, str) else ", ".join(shards)


def _prepared(config: Config, files: Mapping[str, str]) -> str:
    also = " `config.json` has the same; ONNX files have it in their metadata." if "config.json" in files else ""
    about = preprocessing(config)
    channels, height, width = about["input_size"]
    if drawn := drawing(config):
        modality = drawn["modality"]
        settings = ", ".join(f"{name} {json.dumps(value)}" for name, value in drawn[modality].items())
        return (
            f"{modality} drawn by effnet in {height}x{width} ({settings}), scaled to 0..1, less mean {about['mean']}, "
            f"over standard deviation {about['std']}."
            + (" `config.json` has the same." if "config.json" in files else "")
        )
    return (
        f"resized so that a crop of {height}x{width} out of the middle is {about['crop_pct']:g} of the short side "
        f"({about['interpolation']}), {channels} channels scaled to 0..1, less mean {about['mean']}, over standard "
        f"deviation {about['std']}.{also}"
    )


def _evaluations(run: RunDirectory, weights: Weights) -> list[tuple[str, ...]]:
    """What ``effnet validate`` last found of these very weights, a row for each size and crop of images."""
    found = read_json(run.path / "validation.json")
    if weights.steps != (found.get("step"),):
        return []
    return [
        (
            f"{each['image_size']}, crop {each['crop_pct']:g}",
            f"{each['samples']:,}",
            *(f"{each[name]:.4f}" for name in ("top1", "top5", "loss", "calibration_error")),
        )
        for each in found.get("results", ())
        if each["weights"] == weights.kind
    ]


def _results(
    weights: Weights,
    metrics: Mapping[str, float],
    evaluations: Sequence[tuple[str, ...]],
    measured: Sequence[Measured],
) -> list[str]:
    parts = []
    if metrics:
        rows = [(name, f"{value:.4f}") for name, value in metrics.items()]
        parts.append(_table((f"validation, step {weights.steps[0]}", ""), rows))
    if evaluations:
        parts.append(_table(("effnet validate", "samples", "top-1", "top-5", "loss", "calibration error"), evaluations))
    if measured:
        rows_of_files = [
            (f"`{each.file}`", f"{each.megabytes:.2f} MB", f"{each.images_per_second:,.0f}", f"{each.top1:.4f}")
            for each in measured
        ]
        title = f"top-1 of {measured[0].samples:,} validation samples"
        speed = f"images/s, CPU, {measured[0].batch_size} at once"
        parts.append(_table(("ONNX Runtime", "size", speed, title), rows_of_files))
    return ["## Results", *parts] if parts else []


def _recipe(config: Config) -> str:
    changed = config.model_dump(
        mode="json", exclude_defaults=True, exclude=OF_THE_PLACE & set(type(config).model_fields)
    )
    return yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def as_json(measured: Sequence[Measured]) -> str:
    """The measurements, for programs."""
    return json.dumps([each._asdict() for each in measured], indent=2) + "\n"


def copy_curves(run: RunDirectory, folder: Path) -> bool:
    """Put the picture of training beside the card; says whether there is one."""
    source = run.path / CURVES
    if source.is_file():
        (folder / CURVES).write_bytes(source.read_bytes())
    return source.is_file()
