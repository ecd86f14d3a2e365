"""What a run has reached, as a person reads it."""

from collections.abc import Mapping

from rich.table import Table

WEIGHTS = {"val/": "raw weights", "val/ema_": "averaged weights"}
METRICS = ("top1", "top5", "loss")


def validation_table(title: str, metrics: Mapping[str, float]) -> Table:
    """Top-1, top-5 and loss of each set of weights that ``metrics`` (``val/top1``, ``val/ema_top1``, …) tells of."""
    shown = {prefix: label for prefix, label in WEIGHTS.items() if f"{prefix}top1" in metrics}
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("validation")
    for label in shown.values():
        table.add_column(label, justify="right")
    for name in METRICS:
        table.add_row(name, *(f"{metrics[prefix + name]:.4f}" for prefix in shown))
    return table
