"""The section about the last validation in which all was counted, by whatever keys its ``validation.json`` has."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from launch.reporting.attempts import fact_table, table
from launch.reporting.confusion import draw_blocks, draw_matrix, read_blocks, read_matrix
from launch.reporting.facts import code
from launch.reporting.markup import Markup, joined, tag
from launch.reporting.predictions import class_name
from launch.reporting.record import Record
from launch.reporting.wording import counted, number

WEIGHTS = (("val/", "raw weights"), ("val/ema_", "averaged weights"))
METRICS = ("top1", "top5", "loss")
SHARES = ("top1", "top5", "calibration_error", "balanced_top1", "crop_pct")
MOST_CLASSES = 12
"""Classes that are shown, the worst."""


def validation_section(record: Record) -> Markup:
    """Figures of each set of weights; of each setting, class and mistake where they are there."""
    found = record.validation
    if not found:
        return joined([tag("p", "None yet: ", code(f"effnet validate {record.name}"), " writes it.", class_="empty")])
    logged = {f"{prefix}{name}" for prefix, _ in WEIGHTS for name in METRICS}
    facts = [
        (key.replace("_", " "), _cell(key, value))
        for key, value in found.items()
        if key not in logged and isinstance(value, str | int | float)
    ]
    rows = [
        (label, *(_cell(name, found.get(prefix + name)) for name in METRICS))
        for prefix, label in WEIGHTS
        if any(prefix + name in found for name in METRICS)
    ]
    parts = [table(("weights", "top-1", "top-5", "loss"), rows)] if rows else []
    return joined([*parts, fact_table(facts), *_results(record.run.path, found)])


def _results(folder: Path, found: Mapping[str, Any]) -> list[Markup]:
    """Of each setting that was evaluated a row; of the last one, classes and commonest mistakes."""
    listed = found.get("results")
    results = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if not results:
        return []
    keys = [
        key
        for key in dict.fromkeys(key for each in results for key in each)
        if all(isinstance(each.get(key), str | int | float | None) for each in results)
        and any(each.get(key) is not None for each in results)
        and key != "confusion"
    ]
    rows = [[_cell(key, each.get(key)) for key in keys] for each in results]
    parts = [tag("h3", "By resolution, crop and weights"), table([key.replace("_", " ") for key in keys], rows)]
    last, names = results[-1], found.get("class_names")
    return [*parts, *_classes(last, names), *_mistakes(last, names), *_confusion(folder, last, names)]


def _classes(result: Mapping[str, Any], names: Any) -> list[Markup]:
    per_class = result.get("per_class")
    top1 = per_class.get("top1") if isinstance(per_class, dict) else None
    if not isinstance(top1, list):
        return []
    scored = sorted((value, label) for label, value in enumerate(top1) if isinstance(value, int | float))
    rows = [(class_name(label, names), _meter(value)) for value, label in scored[:MOST_CLASSES]]
    title = "By class" if len(scored) <= MOST_CLASSES else f"The {MOST_CLASSES} worst of {len(scored):,} classes"
    return [tag("h3", title), table(("class", "top-1"), rows, style="classes")]


def _mistakes(result: Mapping[str, Any], names: Any) -> list[Markup]:
    listed = result.get("most_confused")
    pairs = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    if not pairs:
        return []
    rows = [
        (class_name(each.get("label"), names), class_name(each.get("predicted"), names), each.get("samples"))
        for each in pairs
    ]
    return [tag("h3", "Commonest mistakes"), table(("class", "taken for", "samples"), rows)]


def _confusion(folder: Path, result: Mapping[str, Any], names: Any) -> list[Markup]:
    where = str(result.get("confusion", ""))
    rows = read_matrix(folder, where)
    if rows is not None:
        drawn = draw_matrix(rows, [class_name(label, names) for label in range(len(rows))])
        note = "Labels downwards, what they were taken for to the right; the stronger, the larger the share of a label."
        return [tag("h3", "Confusion"), tag("figure", drawn, tag("p", note, class_="note"))]
    blocks = read_blocks(folder, where)
    if blocks is None:
        return []
    each = counted(blocks.width, "class", "classes")
    note = (
        f"{blocks.classes:,} classes in the order of their numbers, {each} a square: labels downwards, what they were "
        "taken for to the right. On the diagonal as strong as the mean accuracy; elsewhere by the largest share of a "
        "label that is taken for one class, of which the root is shown, so that rare mistakes are seen."
    )
    return [tag("h3", "Confusion"), tag("figure", draw_blocks(blocks), tag("p", note, class_="note"))]


def _meter(share: float) -> Markup:
    width = f"{min(max(share, 0.0), 1.0):.2%}"
    bar = tag(
        "svg",
        tag("rect", width="100%", height=8, rx=4, class_="rest"),
        tag("rect", width=width, height=8, rx=4, class_="part"),
        height=8,
        class_="meter",
        aria_hidden="true",
    )
    return tag("span", bar, " ", number(share, percent=True))


def _cell(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "\N{EN DASH}" if value is None else str(value)
    return number(float(value), percent=key in SHARES)
