"""A learning-rate sweep as a picture: a PNG, and a line of text."""

from collections.abc import Sequence
from pathlib import Path

from trainer.tuning.curve import Suggestion

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 60
"""Characters of a line."""
SEEN = 1.5
"""Largest loss in the picture, times that of the first steps: what comes after divergence says nothing."""
COLORS = {"curve": "#4269d0", "suggestion": "#3ca951", "configured": "#efb118"}


def highest_seen(losses: Sequence[float]) -> float:
    """Where the picture ends."""
    return SEEN * max(losses[: max(len(losses) // 4, 1)], default=0.0)


def sparkline(losses: Sequence[float]) -> str:
    """One character for each loss, or for the mean of several; nothing for none."""
    values = [min(loss, highest_seen(losses)) for loss in losses]
    count = min(len(values), LONGEST)
    parts = [values[place * len(values) // count : (place + 1) * len(values) // count] for place in range(count)]
    means = [sum(part) / len(part) for part in parts]
    low, high = min(means, default=0.0), max(means, default=0.0)
    span = (high - low) or 1.0
    return "".join(BARS[min(int((mean - low) / span * len(BARS)), len(BARS) - 1)] for mean in means)


def draw_sweep(
    target: Path,
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    *,
    suggestion: Suggestion | None,
    configured: float,
) -> None:
    """Draw the loss over the learning rate, with the suggested rate and the configuration's."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(lrs, losses, color=COLORS["curve"], alpha=0.3, linewidth=1, label="loss of each step")
    axes.plot(lrs, smoothed, color=COLORS["curve"], linewidth=2, label="smoothed")
    if suggestion is not None:
        label = f"falls fastest: {suggestion.lr:.2g}"
        axes.axvline(suggestion.lr, color=COLORS["suggestion"], linestyle="--", label=label)
    axes.axvline(configured, color=COLORS["configured"], linestyle=":", label=f"configured: {configured:g}")
    axes.set_xscale("log")
    if smoothed:
        axes.set_ylim(0, highest_seen(smoothed))
    axes.set_xlabel("learning rate (optimizer.lr)")
    axes.set_ylabel("loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=9)
    figure.savefig(target, dpi=110)
