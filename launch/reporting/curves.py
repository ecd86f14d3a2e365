"""Which curves a report has: of one run, and of several over each other."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from launch.reporting.charts import Chart, Line, draw, line_of
from launch.reporting.markup import Markup, tag
from launch.reporting.series import Metrics


@dataclass(frozen=True, kw_only=True)
class Panel:
    """A chart, by the names of its metrics.

    Attributes:
        title: With the unit.
        names: Of metrics.
        percent: Whether they are shares.
        from_zero: Whether the axis begins at zero.
    """

    title: str
    names: Sequence[str]
    percent: bool = False
    from_zero: bool = False


PANELS = (
    Panel(title="Loss", names=("train/loss", "val/loss", "val/ema_loss")),
    Panel(title="Top-1 accuracy", names=("train/top1", "val/top1", "val/ema_top1"), percent=True),
    Panel(title="Top-5 accuracy", names=("val/top5", "val/ema_top5"), percent=True),
    Panel(title="Learning rate", names=("lr",), from_zero=True),
    Panel(title="Images per second", names=("throughput/images_per_second",), from_zero=True),
    Panel(title="Time spent waiting for data", names=("throughput/data_wait_share",), percent=True, from_zero=True),
    Panel(
        title="Shards read, MB per second",
        names=("data/network_mb_per_second", "data/disk_mb_per_second"),
        from_zero=True,
    ),
    Panel(
        title="Remote shards: in the cache, waited for",
        names=("data/cache_hit_share", "data/download_wait_share"),
        percent=True,
        from_zero=True,
    ),
    Panel(title="Gradient norm", names=("train/grad_norm",)),
    Panel(
        title="Time of a step, ms", names=("throughput/step_time_p50_ms", "throughput/step_time_p95_ms"), from_zero=True
    ),
    Panel(title="Device memory, GB", names=("device/memory_peak_gb", "device/memory_reserved_gb"), from_zero=True),
    Panel(title="Share of the device's peak arithmetic", names=("throughput/mfu",), percent=True, from_zero=True),
)
"""What no row of a run has is left out."""
MACHINES = {
    "cpu_percent": "Processors at work, %",
    "memory_percent": "Memory in use, %",
    "gpu_percent": "GPUs at work, %",
    "gpu_memory_percent": "GPU memory in use, %",
    "gpu_temperature_c": "GPU temperature, °C",
    "disk_free_gb": "Free on the run's disk, GB",
    "cache_free_gb": "Free on the cache's disk, GB",
    "network_received_mb_per_second": "Received, MB per second",
    "network_sent_mb_per_second": "Sent, MB per second",
}
"""Charts of machines, a line each; of many machines the smallest, mean and largest."""
LABELS = {
    "train": "training",
    "val/ema": "averaged",
    "val": "validation",
    "lr": "rate",
    "throughput/images_per_second": "all devices",
    "throughput/data_wait_share": "share of the time",
    "throughput/step_time_p50_ms": "median",
    "throughput/step_time_p95_ms": "95th percentile",
    "device/memory_peak_gb": "peak",
    "device/memory_reserved_gb": "reserved",
    "throughput/mfu": "share",
    "data/network_mb_per_second": "from servers",
    "data/disk_mb_per_second": "from disk",
    "data/cache_hit_share": "found in the cache",
    "data/download_wait_share": "time waiting",
}
STYLES = {"train": "line-a", "val": "line-b", "val/ema": "line-c"}
MOST_RUNS = 8
"""Runs that can be told apart by the lines' colours and dashes."""
NO_ROWS = "No metrics yet: the first row comes after trainer.log_every_n_steps optimizer steps."


def curves(metrics: Metrics) -> Markup:
    """All charts of a run."""
    by_epoch = metrics.has_epochs
    reach = _reach(metrics, by_epoch=by_epoch)
    marks = [
        (metrics.epochs[row] if by_epoch else float(metrics.steps[row]), f"attempt {metrics.attempts[row]} begins")
        for row in metrics.attempt_starts()
    ]
    drawn = []
    for panel in (*PANELS, *_machine_panels(metrics)):
        found = [
            line_of(metrics, name, label=_label(name), style=_style(name, place), by_epoch=by_epoch)
            for place, name in enumerate(panel.names)
        ]
        lines = [line for line in found if line is not None]
        if lines:
            drawn.append(draw(_chart(panel, panel.title, lines, by_epoch=by_epoch, reach=reach, marks=marks)))
    if not drawn:
        return tag("p", NO_ROWS, class_="empty")
    begins = " Dotted upright lines: an attempt begins." if marks else ""
    note = tag("p", f"Averaged: validation of the averaged weights.{begins}", class_="note")
    return tag("div", tag("div", *drawn, class_="charts"), note)


def compared_curves(runs: Sequence[tuple[str, Metrics]]) -> Markup:
    """A chart for each metric that any of the runs has, a line for each run."""
    by_epoch = all(metrics.has_epochs for _, metrics in runs if metrics.steps)
    reach = max(_reach(metrics, by_epoch=by_epoch) for _, metrics in runs)
    drawn = []
    for panel in PANELS:
        for name in panel.names:
            found = [
                line_of(metrics, name, label=run, style=f"line-{'abcdefgh'[place]}", by_epoch=by_epoch)
                for place, (run, metrics) in enumerate(runs)
            ]
            lines = [line for line in found if line is not None]
            if lines:
                title = panel.title if len(panel.names) == 1 else f"{panel.title}: {_label(name)}"
                drawn.append(draw(_chart(panel, title, lines, by_epoch=by_epoch, reach=reach)))
    return tag("div", *drawn, class_="charts") if drawn else tag("p", NO_ROWS, class_="empty")


def _machine_panels(metrics: Metrics) -> list[Panel]:
    panels = []
    for name, title in MACHINES.items():
        form = re.compile(rf"system/(node\d+/{name}|{name}_(min|mean|max))")
        names = [column for column in metrics.columns if form.fullmatch(column)]
        panels.append(Panel(title=title, names=sorted(names)[:MOST_RUNS], from_zero=True))
    return panels


def _chart(
    panel: Panel,
    title: str,
    lines: Sequence[Line],
    *,
    by_epoch: bool,
    reach: float,
    marks: Sequence[tuple[float, str]] = (),
) -> Chart:
    return Chart(
        title=title,
        lines=lines,
        axis="epoch" if by_epoch else "step",
        reach=reach,
        percent=panel.percent,
        from_zero=panel.from_zero,
        marks=marks,
    )


def _reach(metrics: Metrics, *, by_epoch: bool) -> float:
    return max(metrics.epochs if by_epoch else map(float, metrics.steps), default=0.0)


def _kind(name: str) -> str:
    return "val/ema" if name.startswith("val/ema_") else name.partition("/")[0]


def _label(name: str) -> str:
    machine = re.match(r"system/node(\d+)/", name)
    if machine:
        return f"node {machine[1]}"
    if name.startswith("system/"):
        return name.rpartition("_")[2]
    return LABELS.get(name, LABELS.get(_kind(name), name))


def _style(name: str, place: int) -> str:
    return STYLES.get(_kind(name), f"line-{'abcdefgh'[place]}")
