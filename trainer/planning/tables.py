"""A plan as a person reads it: tables of size, memory, network and time, and what the run will wait for."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from trainer.planning.duration import StageTime
    from trainer.planning.plan import Plan

PARTS = {
    "weights": "weights",
    "buffers": "BatchNorm statistics",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "moving average",
    "communication": "DeepSpeed's buffers",
    "undo": "copies to undo a step",
    "teacher": "teacher",
    "activations": "activations",
}


def show_plan(plan: "Plan", console: Console) -> None:
    """Print all of it."""
    for table in (_network(plan), _memory(plan), _traffic(plan), _stages(plan), _time(plan)):
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
    network, teacher = plan.network, plan.teacher
    rows = [
        ("parameters", f"{network.parameters / 1e6:,.2f} M"),
        ("multiply-adds of an image", f"{network.macs / 1e9:,.3f} G"),
        ("FLOP of an image, forward and backward", f"{network.flops / 1e9:,.2f} G"),
        (f"memory traffic of an image, {plan.precision}", _bytes(network.moved_bytes)),
    ]
    if teacher is not None:
        rows += [
            ("teacher's parameters", f"{teacher.parameters / 1e6:,.2f} M"),
            ("teacher's multiply-adds of an image", f"{teacher.macs / 1e9:,.3f} G"),
        ]
    rows += [("checkpoint", _bytes(plan.checkpoints.each)), ("checkpoints kept", _bytes(plan.checkpoints.kept))]
    return _table(f"{plan.name}: network at {network.image_size} pixels", rows)


def _memory(plan: "Plan") -> Table:
    memory = plan.memory
    rows = [(label, _bytes(getattr(memory, part))) for part, label in PARTS.items() if getattr(memory, part)]
    if memory.evaluation > memory.activations:
        rows.append(("evaluation, in place of activations", _bytes(memory.evaluation)))
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
    if traffic.layer_bytes:
        rows.append(("BatchNorm's layers", _bytes(traffic.layer_bytes)))
    if traffic.buckets:
        rows.append(("buckets", str(traffic.buckets)))
    if traffic.seconds is not None:
        rows.append(("time on the slowest link", _seconds(traffic.seconds)))
    where = f"{plan.num_nodes} x {plan.devices} devices, {plan.strategy}"
    return _table(f"sent by each of {where}, in a step" if world > 1 else f"sent in a step: {where}", rows)


def _stages(plan: "Plan") -> Table:
    """A row for each stage of training, for the teacher, and for evaluation."""
    # Narrow enough for 80 columns.
    table = Table(title=f"stages of {plan.totals.epochs} epochs", title_justify="left", padding=(0, 1, 0, 0))
    for column in ("epochs", "pixels", "steps", "GMACs", "memory", "images/s", "hours", "limit"):
        table.add_column(column, justify="left" if column in ("epochs", "limit") else "right", no_wrap=True)
    for row in plan.stages:
        stage, time = row.stage, row.time
        table.add_row(
            f"{stage.first_epoch} to {stage.until_epoch}{', head' if stage.frozen else ''}",
            str(stage.image_size),
            f"{stage.steps:,}",
            f"{row.macs / 1e9:,.3f}",
            _bytes(row.activations),
            *(("", "", "") if time is None else _pace(time)),
        )
    duration, teacher, evaluation = plan.duration, plan.teacher, plan.evaluation
    if teacher is not None:
        table.add_row(
            "teacher",
            str(plan.network.image_size),
            f"{plan.totals.steps:,}",
            f"{teacher.macs / 1e9:,.3f}",
            _bytes(teacher.activations),
            "",
            f"{duration.teacher_hours:,.2f}" if duration is not None else "",
        )
    table.add_row(
        "evaluation",
        str(evaluation.image_size),
        f"{evaluation.validations:,} x {evaluation.sets_of_weights}",
        f"{evaluation.macs / 1e9:,.3f}",
        _bytes(evaluation.activations),
        "",
        f"{duration.validation_hours:,.2f}" if duration is not None and plan.samples.validation else "",
    )
    return table


def _pace(time: "StageTime") -> tuple[str, str, str]:
    return f"{time.speed.images_per_s:,.0f}", f"{time.hours:,.2f}", time.speed.bottleneck


def _time(plan: "Plan") -> Table:
    duration, samples, totals = plan.duration, plan.samples, plan.totals
    rows = [
        ("training samples", f"{samples.training:,}"),
        ("optimizer steps", f"{totals.steps:,}"),
        ("micro-batches of a device in a step", str(plan.accumulate_grad_batches)),
    ]
    heaviest = plan.stages[plan.heaviest].time
    if duration is not None and heaviest is not None:
        rows += _step(heaviest)
    rows.append(("from storage, in all", _bytes(totals.read_bytes)))
    if totals.sent_bytes:
        rows.append(("sent by each device, in all", _bytes(totals.sent_bytes)))
    if duration is None:
        return _table("time", rows)
    rows.append(("training", f"{duration.training_hours:,.2f} h"))
    if duration.validation_hours:
        rows.append(("validation", f"{duration.validation_hours:,.2f} h"))
    rows.append(("device-hours", f"{duration.device_hours:,.1f}"))
    where = plan.device or "this hardware"
    step = f", a step at {plan.network.image_size} pixels" if len(plan.stages) > 1 else ""
    return _table(f"time on {where}{step}", rows)


def _step(time: "StageTime") -> list[tuple[str, str]]:
    device, speed = time.device, time.speed
    rows = [("micro-batch", f"{_seconds(device.micro_batch_s)} ({device.bound_by})")]
    if device.teacher_s:
        rows.append(("of it the teacher", _seconds(device.teacher_s)))
    rows += [
        ("optimizer and average", _seconds(device.update_s)),
        ("step", _seconds(speed.step_s)),
        ("images/s", f"{speed.images_per_s:,.0f}"),
        ("images/s for each device, from its loaders", f"{speed.images_per_device_s:,.0f}"),
    ]
    if speed.cores_per_device is not None:
        rows.append(("cores for each device, to decode these", f"{speed.cores_per_device:,.1f}"))
    rows.append(("from storage, for each node", f"{_bytes(speed.storage_bytes_per_s)}/s"))
    rows += [(f"images/s that the {part} would allow", f"{each:,.0f}") for part, each in speed.limits.items()]
    return rows


def _conclusions(plan: "Plan") -> list[str]:
    lines, memory = [f"samples: {plan.samples.source}"], plan.memory
    if memory.usable is not None and memory.training > memory.usable:
        fitting = memory.fitting_micro_batch
        lines.append(
            f"does not fit: data.micro_batch_size={plan.micro_batch_size} needs {_bytes(memory.training)} of "
            f"{_bytes(memory.usable)}; {f'{fitting} fits' if fitting else 'no other fits either'}"
        )
    evaluating = memory.training - memory.activations + memory.evaluation
    if memory.usable is not None and evaluating > memory.usable:
        lines.append(
            f"does not fit: data.eval_batch_size={plan.evaluation.batch_size} needs {_bytes(evaluating)} of "
            f"{_bytes(memory.usable)}; a smaller one changes no result"
        )
    if plan.duration is None:
        lines.append("time: launch.hardware describes no device; a file of configs/hardware does")
    else:
        lines.append(f"bottleneck: {plan.duration.bottleneck}: {plan.duration.advice}")
    return lines


def _bytes(size: float) -> str:
    for unit, factor in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.2f} {unit}" if size < 10 * factor else f"{size / factor:,.1f} {unit}"
    return f"{size:,.0f} B"


def _seconds(seconds: float) -> str:
    return f"{seconds:,.2f} s" if seconds >= 1 else f"{seconds * 1e3:,.2f} ms"
