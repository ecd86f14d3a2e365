"""What trackers get of a run's last validation: figures, plots, classes, and a table of predictions with pictures.

A W&B Table that is logged online is an artifact, of several requests each; pages of HTML and images are plain files.
"""

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

from pytorch_lightning.loggers import Logger

from trainer.evaluation.extremes import KINDS
from trainer.evaluation.pictures import Example
from trainer.evaluation.results import FOLDER, Evaluation, Result
from trainer.tensorboard_logger import SafeTensorBoardLogger
from trainer.wandb_logger import SafeWandbLogger

PLOTS = ("confusion", "classes", "reliability")
EXAMPLE_COLUMNS = ("image", "label", "taken for", "probability", "of the label", "loss", "key", "shard")
CLASS_COLUMNS = ("class", "samples", "top-1")
STYLE = (
    "<style>body{font:14px system-ui,sans-serif;margin:12px;background:#fff;color:#1d2329}"
    "table{border-collapse:collapse}td,th{padding:6px 14px 6px 0;text-align:left;border-bottom:1px solid #e4e6e3;"
    "overflow-wrap:anywhere}img{width:112px;image-rendering:auto}</style>"
)


def tell(trackers: Iterable[Logger], evaluation: Evaluation, folder: Path, *, step: int) -> None:
    """Log it, at an optimizer step, from the files that are below ``folder``. Of W&B and TensorBoard."""
    cut = evaluation.results[0].setting.cut
    decisive = evaluation.results[-1]  # averaged weights, where there are some
    for tracker in trackers:
        if isinstance(tracker, SafeWandbLogger):
            tracker.summarise(_summary(evaluation))
            tracker.log_page("final/per_class", class_page(evaluation, decisive), step)
            for kind in KINDS:
                if decisive.examples.get(kind):
                    tracker.log_page(f"final/{kind}", example_page(evaluation, decisive.examples[kind]), step)
        if isinstance(tracker, SafeWandbLogger | SafeTensorBoardLogger):
            for plot in PLOTS:
                tracker.log_picture(f"final/{plot}", folder / FOLDER / f"{plot}-{cut}.png", step)


def example_page(evaluation: Evaluation, examples: Sequence[Example]) -> str:
    """HTML with a row of `EXAMPLE_COLUMNS` for each, pictures inside."""
    rows = [
        (
            _picture(example),
            escape(evaluation.class_name(example.label)),
            escape(evaluation.class_name(example.predicted)),
            f"{example.confidence:.2%}",
            f"{example.label_probability:.2%}",
            f"{example.loss:.4f}",
            escape(example.key or f"sample {example.sample}"),
            escape(example.shard),
        )
        for example in examples
    ]
    return _table(EXAMPLE_COLUMNS, rows)


def class_page(evaluation: Evaluation, result: Result) -> str:
    """HTML with a row of `CLASS_COLUMNS` for each class that has samples, the worst first."""
    samples, top1 = result.figures.class_samples, result.figures.class_top1
    order = [int(label) for label in top1.argsort(kind="stable") if samples[label]]
    rows = [(escape(evaluation.class_name(label)), f"{samples[label]:,}", f"{top1[label]:.2%}") for label in order]
    return _table(CLASS_COLUMNS, rows)


def _summary(evaluation: Evaluation) -> dict[str, float]:
    found: dict[str, float] = {}
    for setting, figures, _ in evaluation.results:
        prefix = "final/" if setting.weights == "raw" else f"final/{setting.weights}_"
        for name in ("top1", "top5", "loss", "balanced_top1", "calibration_error"):
            found[prefix + name] = getattr(figures, name)
    return found


def _picture(example: Example) -> str:
    if example.picture is None:
        return ""
    kind = "png" if str(example.file).endswith(".png") else "jpeg"
    return f'<img alt="" src="data:image/{kind};base64,{base64.b64encode(example.picture).decode()}">'


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells are HTML already."""
    lines = ["".join(f"<th>{escape(column)}</th>" for column in columns)]
    lines += ["".join(f"<td>{cell}</td>" for cell in row) for row in rows]
    return f"{STYLE}<table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table>"
