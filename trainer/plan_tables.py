"""A plan as a person reads it: tables of size, memory, network and time, and what the run will wait for."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trainer.plan import Plan

PARTS = {
    "weights": "weights",
    "buffers": "BatchNorm statistics",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "moving average",
    "communication": "DeepSpeed's buffers",
    "activations": "activations",
}


def show_plan(plan: "Plan", console: Console) -> None:
    """Print all of it."""
    for table in (_network(plan), _memory(plan), _traffic(plan), _time(plan)):
        console.print(table, highlight=False, markup=False)
    for line in _conclusions(plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _table(title: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, min_width=max(len(title), 48))
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _network(plan: "Plan") -> Table:
    network = plan.network
    return _table(
        f"{plan.name}: network at {plan.image_size} pixels",
        [
            ("parameters", f"{network.parameters / 1e6:,.2f} M"),
            ("multiply-adds of an image", f"{network.macs / 1e9:,.3f} G"),
            ("FLOP of an image, forward and backward", f"{network.flops / 1e9:,.2f} G"),
            (f"memory traffic of an image, {plan.precision}", _bytes(network.moved_bytes)),
            ("checkpoint", _bytes(plan.checkpoints.each)),
            ("checkpoints kept", _bytes(plan.checkpoints.kept)),
        ],
    )


def _memory(plan: "Plan") -> Table:
    memory = plan.memory
    rows = [(label, _bytes(getattr(memory, part))) for part, label in PARTS.items() if getattr(memory, part)]
    rows += [("total", _bytes(memory.total)), ("of it for each image", _bytes(memory.activations_per_image))]
    rows += [
        (f"total with a micro-batch of {size:,}", _bytes(total))
        for size, total in memory.totals.items()
        if size != plan.micro_batch_size
    ]
    if memory.usable is not None:
        rows.append(("usable", _bytes(memory.usable)))
        rows.append(("largest micro-batch that fits", f"{memory.largest_micro_batch:,}"))
    return _table(f"memory of a device, micro-batch of {plan.micro_batch_size}", rows)


def _traffic(plan: "Plan") -> Table:
    traffic, world = plan.traffic, plan.devices * plan.num_nodes
    rows = [("gradients", _bytes(traffic.gradient_bytes))]
    if traffic.weight_bytes:
        rows.append(("weights (ZeRO)", _bytes(traffic.weight_bytes)))
    rows.append(("BatchNorm statistics", _bytes(traffic.statistics_bytes)))
    if traffic.buckets:
        rows.append(("buckets", str(traffic.buckets)))
    if traffic.seconds is not None:
        rows.append(("time on the slowest link", _seconds(traffic.seconds)))
    where = f"{plan.num_nodes} x {plan.devices} devices, {plan.strategy}"
    return _table(f"sent by each of {where}, in a step" if world > 1 else f"sent in a step: {where}", rows)


def _time(plan: "Plan") -> Table:
    duration, time, samples = plan.duration, plan.device_time, plan.samples
    rows = [
        ("training samples", f"{samples.training:,}"),
        ("optimizer steps", f"{plan.steps:,}"),
        ("micro-batches of a device in a step", str(plan.accumulate_grad_batches)),
    ]
    if duration is None or time is None:
        return _table("time", rows)
    rows += [
        ("micro-batch", f"{_seconds(time.micro_batch_s)} ({time.bound_by})"),
        ("optimizer and average", _seconds(time.update_s)),
        ("step", _seconds(duration.step_s)),
        ("images/s", f"{duration.images_per_s:,.0f}"),
        ("images/s for each device, from its loaders", f"{duration.images_per_device_s:,.0f}"),
    ]
    if duration.cores_per_device is not None:
        rows.append(("cores for each device, to decode these", f"{duration.cores_per_device:,.1f}"))
    rows.append(("from storage, for each node", f"{_bytes(duration.storage_bytes_per_s)}/s"))
    rows += [(f"images/s that the {part} would allow", f"{speed:,.0f}") for part, speed in duration.limits.items()]
    rows.append(("training", f"{duration.training_hours:,.2f} h"))
    if duration.validation_hours:
        rows.append(("validation", f"{duration.validation_hours:,.2f} h"))
    rows.append(("device-hours", f"{duration.device_hours:,.1f}"))
    return _table(f"time on {plan.device or 'this hardware'}", rows)


def _conclusions(plan: "Plan") -> list[str]:
    lines, memory = [f"samples: {plan.samples.source}"], plan.memory
    if memory.fits is False:
        fitting = memory.fitting_micro_batch
        lines.append(
            f"does not fit: data.micro_batch_size={plan.micro_batch_size} needs {_bytes(memory.total)} of "
            f"{_bytes(memory.usable or 0)}; {f'{fitting} fits' if fitting else 'no other fits either'}"
        )
    if plan.duration is None:
        lines.append("time: launch.hardware describes no device; a file of configs/hardware does")
    else:
        lines.append(f"bottleneck: {plan.duration.bottleneck}: {plan.duration.advice}")
    return lines


def _bytes(size: float) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}" if size < 10 * factor else f"{size / factor:,.1f} {unit}"
    return f"{size:,.0f} B"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"
