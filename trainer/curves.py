"""``curves.png``: loss, accuracy, learning rate and throughput of a run, from metrics.csv."""

import csv
from pathlib import Path

THROUGHPUT = "images per second"
PANELS = (
    ("loss", ("train/loss", "val/loss", "val/ema_loss")),
    ("top-1", ("train/top1", "val/top1", "val/ema_top1")),
    ("learning rate", ("lr",)),
    (THROUGHPUT, ("throughput/images_per_second",)),
)
COLORS = ("#4269d0", "#efb118", "#3ca951")
LABELS = {"train": "training", "val": "validation", "val/ema": "validation, averaged weights"}


def draw_curves(metrics_file: Path, target: Path) -> None:
    """Draw the four panels over epochs."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # at the end of a run, not at every rank's start
    from matplotlib.figure import Figure

    with metrics_file.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    figure = Figure(figsize=(11, 7))
    FigureCanvasAgg(figure)
    # Not by a layout engine, which draws all of it twice more to find these numbers.
    figure.subplots_adjust(left=0.06, right=0.985, bottom=0.075, top=0.95, wspace=0.14, hspace=0.3)
    for axes, (title, names) in zip(figure.subplots(2, 2).flat, PANELS, strict=True):
        for name, color in zip(names, COLORS, strict=False):
            points = [(float(row["epoch"]), float(row[name])) for row in rows if row.get(name)]
            if points:
                axes.plot(
                    *zip(*points, strict=True), color=color, label=_label(name), linewidth=1.6, marker=_marker(points)
                )
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.25)
        if title == THROUGHPUT:
            axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        if len(names) > 1 and axes.lines:
            axes.legend(frameon=False, fontsize=9)
    figure.savefig(target, dpi=120)


def _label(name: str) -> str:
    return LABELS["val/ema"] if name.startswith("val/ema") else LABELS.get(name.partition("/")[0], name)


def _marker(points: list[tuple[float, float]]) -> str | None:
    return "." if len(points) < 40 else None
