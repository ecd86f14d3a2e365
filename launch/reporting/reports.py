"""The two reports: of one run, and of several beside each other."""

import time
from collections.abc import Sequence

from launch.glance import BEST
from launch.reporting.attempts import attempts_section, pill, table
from launch.reporting.curves import compared_curves, curves
from launch.reporting.facts import (
    checkpoints_section,
    code,
    compared_configurations,
    configuration_section,
    environment_section,
)
from launch.reporting.markup import Markup, joined, tag
from launch.reporting.page import cards, page
from launch.reporting.predictions import predictions_section
from launch.reporting.record import RUNNING, Record
from launch.reporting.validation import validation_section
from launch.reporting.wording import NOTHING, counted, duration, moment, number

SPEED = "throughput/images_per_second"
FIGURES = (
    ("Top-1, averaged weights", "val/ema_top1", True),
    ("Top-1", "val/top1", True),
    ("Top-5, averaged weights", "val/ema_top5", True),
    ("Top-5", "val/top5", True),
    ("Loss, averaged weights", "val/ema_loss", False),
    ("Loss", "val/loss", False),
    ("Training loss", "train/loss", False),
    ("Images per second", SPEED, False),
)
"""What runs are compared by: the last value of each."""


def report(record: Record) -> str:
    """The page of one run."""
    predictions = predictions_section(record)
    sections = [
        ("Curves", curves(record.metrics)),
        ("Attempts and faults", attempts_section(record)),
        ("Validation", validation_section(record)),
        *([("Predictions", predictions)] if predictions is not None else []),
        ("Checkpoints", checkpoints_section(record)),
        ("Configuration", configuration_section(record)),
        ("Environment", environment_section(record)),
    ]
    header = joined([_title(record), _cards(record)])
    return page(f"{record.name} \N{MIDDLE DOT} effnet", header, sections, _footer([record]))


def comparison(records: Sequence[Record]) -> str:
    """The page of several runs."""
    names = [record.name for record in records]
    sections = [
        ("Figures", _compared_figures(records)),
        ("Curves", compared_curves([(record.name, record.metrics) for record in records])),
        ("Configuration that differs", compared_configurations(records)),
        ("Attempts", _compared_attempts(records)),
    ]
    title = tag("h1", f"{len(records)} runs compared")
    header = tag("header", title, tag("p", ", ".join(names), class_="lead"))
    return page(f"{', '.join(names)} \N{MIDDLE DOT} effnet", header, sections, _footer(records))


def _title(record: Record) -> Markup:
    config = record.config
    about = []
    if config is not None:
        data, pixels = config.data, config.data.image_size
        about = [config.model.name, *([f"{pixels} pixels"] if pixels is not None else [])]
        about += [f"batches of {data.global_batch_size:,}"]
        about += [f"up to epoch {config.trainer.max_epochs:g}"] if config.trainer.max_epochs is not None else []
    world = next((each.environment.get("world_size") for each in record.attempts[::-1] if each.environment), None)
    about += [counted(world, "process", "processes")] if isinstance(world, int) else []
    lead = tag("p", " \N{MIDDLE DOT} ".join(about), class_="lead") if about else ""
    return tag("header", tag("h1", record.name, " ", _state(record)), lead)


def _state(record: Record) -> Markup:
    word = RUNNING if record.state.startswith(RUNNING) else record.state
    return pill(word, record.state if word == RUNNING else None)


def _cards(record: Record) -> Markup:
    metrics = record.metrics
    facts: list[tuple[str, object, str]] = []
    for title, name, _ in FIGURES[:2]:
        best = metrics.best(name)
        if best is not None:
            last = number(metrics.last(name), percent=True)
            facts.append((f"Best {title[0].lower()}{title[1:]}", number(best[0], percent=True), f"last {last}"))
    rows = len(metrics.steps)
    epoch = f"epoch {metrics.epochs[-1]:.4g}" if rows and metrics.has_epochs else ""
    facts.append(("Optimizer steps", number(float(max(metrics.steps, default=0))), epoch))
    speeds = metrics.columns[SPEED].values if SPEED in metrics.columns else ()
    if speeds:
        median = sorted(speeds)[len(speeds) // 2]
        facts.append(("Images per second", number(median), "median of all rows"))
    failed = sum(attempt.exit_class not in ("done", "interrupted", RUNNING) for attempt in record.attempts)
    facts.append(("Attempts", len(record.attempts), f"{failed} failed" if failed else "none failed"))
    facts.append(("Time at work", duration(_worked_s(record)), "all attempts together"))
    return cards(facts)


def _worked_s(record: Record) -> float:
    return sum(attempt.seconds or 0.0 for attempt in record.attempts)


def _compared_figures(records: Sequence[Record]) -> Markup:
    rows = []
    for title, name, percent in FIGURES:
        values = [record.metrics.last(name) for record in records]
        if any(value is not None for value in values):
            rows.append([title, *(number(value, percent=percent) for value in values)])
    for name in BEST:
        best = [record.metrics.best(name) for record in records]
        if any(best):
            title = next(title for title, each, _ in FIGURES if each == name)
            said = [f"{number(found[0], percent=True)} at step {found[1]:,}" if found else NOTHING for found in best]
            rows.append([f"Best: {title}", *said])
    rows.append(["Optimizer steps", *(number(float(max(each.metrics.steps, default=0))) for each in records)])
    rows.append(["Time at work", *(duration(_worked_s(record)) for record in records)])
    return table(("the last", *(record.name for record in records)), rows, style="figures")


def _compared_attempts(records: Sequence[Record]) -> Markup:
    rows = []
    for record in records:
        last = record.attempts[-1] if record.attempts else None
        reason = f"{last.culprit} {last.reason}".strip() if last is not None else ""
        name = code(record.name)
        rows.append([name, _state(record), len(record.attempts), duration(_worked_s(record)), reason or NOTHING])
    return table(("run", "state", "attempts", "time at work", "last ended with"), rows)


def _footer(records: Sequence[Record]) -> Markup:
    written = f"Written {moment(time.time())} UTC by "
    command = code(f"effnet report {' '.join(record.name for record in records)}")
    still = any(record.state.startswith(RUNNING) for record in records)
    again = " The run goes on: give the command again for what has come since." if still else ""
    return tag("p", written, command, ".", again)
