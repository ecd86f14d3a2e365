"""Plots of an evaluation: confusion matrix, reliability diagram, accuracy of each class; a panel a set of weights."""

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.files import write_atomically
from trainer.evaluation.figures import BINS, Figures

BLUE, ORANGE, GREY = "#4269d0", "#d9480f", "#4a4a4a"
NAMED = 40
"""Classes up to which each is named; of more, the worst few."""
NUMBERED = 20
"""Classes up to which each cell of a confusion matrix has its number."""
BLOCKS = 125
"""Rows and columns of a confusion matrix that can be seen."""
NAME_LENGTH = 18
WORST = 3


def draw(found: Mapping[str, Figures], folder: Path, *, suffix: str, name: Callable[[int], str]) -> None:
    """Write ``confusion-SUFFIX.png``, ``reliability-SUFFIX.png`` and ``classes-SUFFIX.png``.

    Args:
        found: Figures by the title of their panel.
        folder: Of the files.
        suffix: In their names.
        name: Of a class.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def short(label: int) -> str:
        text = name(label)
        return text if len(text) <= NAME_LENGTH else text[: NAME_LENGTH - 1] + "…"

    def confusion(axes: Any, figures: Figures) -> str:
        return _confusion(axes, figures, short)

    def classes(axes: Any, figures: Figures) -> str:
        return _classes(axes, figures, short)

    count = next(iter(found.values())).confusion.shape[0]
    side = max(5.0, 0.27 * count) if count <= NAMED else 7.0
    kinds: dict[str, tuple[Callable[[Any, Figures], str], float, float, bool]] = {
        "confusion": (confusion, side, side + 0.4, False),
        "reliability": (_reliability, 4.8, 5.4, False),
        "classes": (classes, 9.0 if count > NAMED else max(5.0, 0.32 * count), 3.6, True),
    }
    for kind, (panel, width, height, stacked) in kinds.items():
        rows, columns = (len(found), 1) if stacked else (1, len(found))
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (title, figures) in zip(
            figure.subplots(rows, columns, squeeze=False).flat, found.items(), strict=True
        ):
            axes.set_title(f"{title}: {panel(axes, figures)}", loc="left", fontsize=10)
        handles, labels = figure.axes[0].get_legend_handles_labels()
        if labels:
            figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=110)
        write_atomically(folder / f"{kind}-{suffix}.png", buffer.getvalue())


def _confusion(axes: Any, figures: Figures, name: Callable[[int], str]) -> str:
    """Share of each label's samples (rows) by what they are taken for (columns)."""
    matrix, totals = figures.confusion, figures.class_samples
    shares = matrix / np.maximum(totals, 1)[:, None]
    # By a root, so that rare mistakes show.
    axes.imshow(
        np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest" if len(matrix) <= NAMED else "auto"
    )
    if len(matrix) <= NAMED:
        ticks = range(len(matrix))
        axes.set_xticks(ticks, map(name, ticks), rotation=90, fontsize=8)
        axes.set_yticks(ticks, map(name, ticks), fontsize=8)
    if len(matrix) <= NUMBERED:
        for (row, column), value in np.ndenumerate(matrix):
            if value:
                color = "white" if shares[row, column] > 0.35 else "black"
                axes.text(column, row, f"{value}", ha="center", va="center", fontsize=8, color=color)
    axes.set_xlabel("taken for")
    axes.set_ylabel("label")
    return f"top-1 {figures.top1:.2%}"


def _in_blocks(shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of each block of cells, where cells alone would be too small to be seen."""
    block = -(-len(shares) // BLOCKS)
    padded = np.pad(shares, (0, -len(shares) % block))
    blocks = len(padded) // block
    largest: NDArray[np.float64] = padded.reshape(blocks, block, blocks, block).max((1, 3))
    return largest


def _reliability(axes: Any, figures: Figures) -> str:
    """Accuracy of each bin of confidence, beside what it would be if confidence were right, and how many are in it."""
    bins = figures.reliability
    edges = np.linspace(0, 1, BINS + 1)
    share, middles = bins.samples / max(bins.samples.sum(), 1), (edges[:-1] + edges[1:]) / 2
    axes.bar(middles, np.nan_to_num(bins.top1), width=0.94 / BINS, color=BLUE, alpha=0.35, label="accuracy")
    axes.bar(middles, share, width=0.4 / BINS, color=GREY, label="share of samples")
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--", label="calibrated")
    axes.plot(bins.confidence, bins.top1, color=ORANGE, marker="o", markersize=4, linewidth=0, label="mean confidence")
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", aspect="equal")
    axes.spines[["top", "right"]].set_visible(False)
    return f"calibration error {figures.calibration_error:.4f}"


def _classes(axes: Any, figures: Figures, name: Callable[[int], str]) -> str:
    """Accuracy of each class, the worst first; those without samples are left out."""
    top1 = figures.class_top1
    order = [int(label) for label in np.argsort(top1, kind="stable") if not np.isnan(top1[label])]
    places = range(len(order))
    axes.bar(places, top1[order], width=0.8 if len(order) <= NAMED else 1.0, color=BLUE)
    axes.axhline(figures.balanced_top1, color=ORANGE, linewidth=1.2)
    if len(order) <= NAMED:
        axes.set_xticks(places, [name(label) for label in order], rotation=90, fontsize=8)
    else:
        axes.set_xlabel(
            f"{len(order):,} classes, the worst first: " + ", ".join(name(label) for label in order[:WORST])
        )
    lowest = float(top1[order[0]])
    axes.set(xlim=(-0.6, len(order) - 0.4), ylim=(0, 1))
    axes.set_ylabel("top-1")
    axes.spines[["top", "right"]].set_visible(False)
    return f"mean of classes {figures.balanced_top1:.2%}, lowest {lowest:.2%}"
