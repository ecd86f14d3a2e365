"""What an evaluation has found: validation.json, the confusion matrices, and the tables that a person reads."""

import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from configs.files import write_atomically
from trainer.evaluation.extremes import KINDS
from trainer.evaluation.figures import Figures
from trainer.evaluation.pictures import Example, remove_others, write_pictures
from trainer.evaluation.plots import draw

FILE, FOLDER, CONFUSION, PICTURES = "validation.json", "validation", "confusion.npz", "pictures"
MOST_CONFUSED = 10
LABELS = {"raw": "raw", "ema": "averaged"}


class Setting(NamedTuple):
    """How images are cut, and which weights see them.

    Attributes:
        image_size: Side in pixels.
        crop_pct: Share of the resized short side that the crop takes.
        weights: ``raw`` or ``ema``.
    """

    image_size: int
    crop_pct: float
    weights: str

    @property
    def cut(self) -> str:
        """For names of files."""
        return f"{self.image_size}-{self.crop_pct:g}"


class Result(NamedTuple):
    """What was found with one setting.

    Attributes:
        setting: Image size, crop and weights.
        figures: Of all samples.
        examples: The worst and the best predictions, by kind; empty without.
    """

    setting: Setting
    figures: Figures
    examples: Mapping[str, list[Example]] = {}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """All that was found, of what.

    Attributes:
        subject: Name of the run, model or file.
        checkpoint: Directory or file of the weights; None for those that timm publishes.
        step: Optimizer steps behind the weights; None where nobody says.
        shards: Paths or URLs.
        index_hash: Of samples and labels.
        num_classes: Of the network.
        class_names: By label; None without any.
        devices: Processes that took part.
        results: The first setting first, of it the raw weights first.
    """

    subject: str
    checkpoint: str | None
    step: int | None
    shards: tuple[str, ...]
    index_hash: str
    num_classes: int
    class_names: list[str] | None
    devices: int
    results: tuple[Result, ...]

    def class_name(self, label: int) -> str:
        """The name of a class, or its number."""
        return self.class_names[label] if self.class_names is not None else str(label)


def write(evaluation: Evaluation, folder: Path) -> None:
    """Write ``validation.json``, and in ``validation/`` the plots, ``confusion.npz`` and ``pictures/``.

    At the top of the JSON are the figures of the first setting, by the names that training logs them under. Each file
    is whole or the one before, and the JSON comes last: it names none that is not there.
    """
    plots = folder / FOLDER
    plots.mkdir(parents=True, exist_ok=True)
    results = evaluation.results
    pictures = [example for result in results for kind in result.examples.values() for example in kind]
    if pictures:
        write_pictures(pictures, plots / PICTURES)
    matrices: dict[str, Any] = {
        f"{each.setting.cut}-{each.setting.weights}": each.figures.confusion for each in results
    }
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **matrices)
    write_atomically(plots / CONFUSION, buffer.getvalue())
    for cut in dict.fromkeys(result.setting.cut for result in results):
        found = {LABELS[s.weights] + " weights": figures for s, figures, _ in results if s.cut == cut}
        draw(found, plots, suffix=cut, name=evaluation.class_name)
    first = results[0].setting
    result: dict[str, Any] = {
        "checkpoint": evaluation.checkpoint,
        "step": evaluation.step,
        "samples": results[0].figures.samples,
        "image_size": first.image_size,
        "crop_pct": first.crop_pct,
    }
    for setting, figures, _ in results:
        if setting.cut == first.cut:
            prefix = "val/" if setting.weights == "raw" else f"val/{setting.weights}_"
            result |= {f"{prefix}{name}": getattr(figures, name) for name in ("loss", "top1", "top5")}
    result |= {
        "subject": evaluation.subject,
        "shards": evaluation.shards,
        "index_hash": evaluation.index_hash,
        "num_classes": evaluation.num_classes,
        "class_names": evaluation.class_names,
        "devices": evaluation.devices,
        "results": [_as_json(result) for result in results],
    }
    write_atomically(folder / FILE, json.dumps(_without_nan(result), indent=2, allow_nan=False) + "\n")
    if (plots / PICTURES).is_dir():
        remove_others(pictures, plots / PICTURES)


def _as_json(result: Result) -> dict[str, Any]:
    setting, figures, examples = result
    names = ("samples", "top1", "top5", "loss", "calibration_error", "balanced_top1")
    real, bins = figures.real, figures.reliability
    confused = figures.most_confused(MOST_CONFUSED)
    return {
        **setting._asdict(),
        **{name: getattr(figures, name) for name in names},
        "real": None if real is None else {"samples": real.samples, "top1": real.top1, "top5": real.top5},
        "per_class": {"samples": figures.class_samples.tolist(), "top1": figures.class_top1.tolist()},
        "reliability": {
            "samples": bins.samples.tolist(),
            "top1": bins.top1.tolist(),
            "confidence": bins.confidence.tolist(),
        },
        "most_confused": [
            {"label": label, "predicted": predicted, "samples": samples} for label, predicted, samples in confused
        ],
        "confusion": f"{FOLDER}/{CONFUSION}:{setting.cut}-{setting.weights}",
        **{kind: [each.as_json(f"{FOLDER}/{PICTURES}") for each in examples.get(kind, ())] for kind in KINDS},
    }


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: null stands for figures that there are not."""
    if isinstance(value, dict):
        return {key: _without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_tables(evaluation: Evaluation, folder: Path, console: Console) -> None:
    """A row for each setting and set of weights; the classes that are told apart worst; where the files are."""
    console.print(_overview(evaluation))
    settings = [result for result in evaluation.results if result.setting.cut == evaluation.results[0].setting.cut]
    setting, figures, _ = settings[-1]  # averaged weights, where there are some
    if figures.top1 < 1:
        console.print(_mistakes(evaluation, setting, figures))
    text = f"{folder / FILE}, plots, pictures and confusion matrices: {folder / FOLDER}"
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def _overview(evaluation: Evaluation) -> Table:
    settings = [result.setting for result in evaluation.results]
    sizes = " and ".join(dict.fromkeys(str(setting.image_size) for setting in settings))
    step = "" if evaluation.step is None else f", step {evaluation.step}"
    title = f"{evaluation.subject}{step}: {evaluation.results[0].figures.samples:,} samples of {sizes} pixels"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("weights")
    has_real = evaluation.results[0].figures.real is not None
    titles = ["pixels", "crop", "top1", "top5", "loss", "class mean", "ECE"]
    for column in titles + (["real top1", "real samples"] if has_real else []):
        table.add_column(column, justify="right")
    for setting, figures, _ in evaluation.results:
        cells = [LABELS[setting.weights], str(setting.image_size), f"{setting.crop_pct:g}"]
        cells += _decimals(figures.top1, figures.top5, figures.loss, figures.balanced_top1, figures.calibration_error)
        if figures.real is not None:
            cells += [*_decimals(figures.real.top1), f"{figures.real.samples:,}"]
        table.add_row(*cells)
    return table


def _mistakes(evaluation: Evaluation, setting: Setting, figures: Figures) -> Table:
    cut = f"{setting.image_size} pixels, crop {setting.crop_pct:g}"
    title = f"commonest mistakes of the {LABELS[setting.weights]} weights, {cut}"
    table = Table(title=title, title_justify="left", min_width=len(title))
    for column in ("class", "taken for"):
        table.add_column(column, overflow="fold")
    for column in ("samples", "of", "top1 of the class"):
        table.add_column(column, justify="right")
    for label, predicted, samples in figures.most_confused(5):
        names = (escape(evaluation.class_name(each)) for each in (label, predicted))
        total, (top1,) = int(figures.class_samples[label]), _decimals(figures.class_top1[label])
        table.add_row(*names, f"{samples:,}", f"{total:,}", top1)
    return table


def _decimals(*values: float) -> list[str]:
    return [f"{value:.4f}" for value in values]
