"""Sections that are tables of facts: configuration, environment, checkpoints."""

from collections.abc import Iterable, Sequence
from typing import Any

from configs.changes import UNSPOKEN
from configs.load import leaves
from configs.problems import shown
from configs.schema import Config, Data
from launch.reporting.attempts import fact_table, pill, table
from launch.reporting.markup import Markup, joined, tag
from launch.reporting.record import Checkpoint, Facts, Record
from launch.reporting.wording import moment, number, size

LONGEST_DIFF = 100_000
"""Characters of uncommitted changes that are shown."""
MOST_CHECKPOINTS = 100
NO_DEFAULT = ("data.train_shards", "data.val_shards")


def differences(config: Config) -> list[tuple[str, str, str]]:
    """(key, value, default) of settings that are not at their default, in the schema's order."""
    defaults = leaves(Config(data=Data(train_shards="", val_shards="")))
    return [
        (key, shown(value), "" if key in NO_DEFAULT else shown(defaults[key]))
        for key, value in leaves(config).items()
        if value != defaults[key]
    ]


def configuration_section(record: Record) -> Markup:
    """What differs from the defaults, then everything."""
    if record.config is None:
        said = record.config_fault or "there is none"
        return joined([tag("p", "config.yaml cannot be read:", class_="empty"), tag("pre", said)])
    different = differences(record.config)
    rows = [(code(key), code(value), code(default) if default else "no default") for key, value, default in different]
    names = {key for key, *_ in different}
    every = [
        (tag("b", code(key)) if key in names else code(key), code(shown(value)))
        for key, value in leaves(record.config).items()
    ]
    summary = tag("summary", f"All {len(every)} settings")
    return joined(
        [
            tag("h3", f"Differs from the defaults ({len(rows)})"),
            table(("setting", "value", "default"), rows, style="settings"),
            tag("details", summary, fact_table(every)),
        ]
    )


def compared_configurations(records: Sequence[Record]) -> Markup:
    """Settings that are not the same in all runs."""
    found = [leaves(record.config) if record.config is not None else {} for record in records]
    keys = list(dict.fromkeys(key for each in found for key in each if not UNSPOKEN.fullmatch(key)))
    rows = []
    for key in keys:
        values = [shown(each[key]) if key in each else "\N{EN DASH}" for each in found]
        if len(set(values)) > 1:
            rows.append([code(key), *map(code, values)])
    if not rows:
        return tag("p", "All settings are the same.", class_="empty")
    return table(("setting", *(record.name for record in records)), rows, style="settings")


def environment_section(record: Record) -> Markup:
    """The last attempt's, and what was another before."""
    known = [(attempt.number, _flat(attempt.environment)) for attempt in record.attempts if attempt.environment]
    if not known:
        return tag("p", "Not recorded yet: an attempt does so when its ranks have come together.", class_="empty")
    number_, last = known[-1]
    rows = [(key, code(value)) for key, value in last.items()]
    parts = [tag("h3", f"Attempt {number_}"), fact_table(rows)]
    changed = [
        (key, *(code(each.get(key, "\N{EN DASH}")) for _, each in known))
        for key in dict.fromkeys(key for _, each in known for key in each)
        if key not in ("started", "command", "resumed_from") and len({each.get(key) for _, each in known}) > 1
    ]
    if changed:
        headings = ("what", *(f"attempt {number}" for number, _ in known))
        parts += [tag("h3", "Was not the same in all attempts"), table(headings, changed, style="settings")]
    if record.uncommitted:
        cut = record.uncommitted[:LONGEST_DIFF]
        more = "" if len(cut) == len(record.uncommitted) else f", the first {LONGEST_DIFF:,} characters"
        parts.append(tag("details", tag("summary", f"Uncommitted changes of the code{more}"), tag("pre", cut)))
    return joined(parts)


def checkpoints_section(record: Record) -> Markup:
    """Those that are there, the newest first, by their manifests."""
    parts: list[object] = []
    shown_ones = record.checkpoints[::-1][:MOST_CHECKPOINTS]
    metrics = ("val/top1", "val/ema_top1", "val/loss", "val/ema_loss")
    if shown_ones:
        headings = ("checkpoint", "written (UTC)", "size", "epoch", "top-1", "averaged", "loss", "averaged loss")
        rows = [_checkpoint_row(checkpoint, metrics) for checkpoint in shown_ones]
        parts.append(table(headings, rows))
        more = len(record.checkpoints) - len(shown_ones)
        said = f" {more} older ones are left out." if more else ""
        note = f"As their manifests say; effnet verifies checksums when it goes on from one.{said}"
        parts.append(tag("p", note, class_="note"))
    else:
        parts.append(tag("p", "None yet.", class_="empty"))
    if record.set_aside:
        rows_ = [(code(name), reason) for name, reason in record.set_aside]
        parts += [tag("h3", "Set aside"), table(("checkpoint", "why"), rows_)]
    return joined(parts)


def code(text: object) -> Markup:
    """As it is written in a file or on a command line."""
    return tag("code", text)


def _checkpoint_row(checkpoint: Checkpoint, names: Iterable[str]) -> list[object]:
    metrics = checkpoint.manifest.get("metrics")
    found = metrics if isinstance(metrics, dict) else {}
    values = [(name, found.get(name)) for name in names]
    cells = [
        number(float(value), percent="top1" in name) if isinstance(value, int | float) else "\N{EN DASH}"
        for name, value in values
    ]
    name: list[object] = [code(checkpoint.name)]
    name += [" ", pill("done", "latest")] if checkpoint.latest else []
    name += [tag("em", " no readable manifest")] if not checkpoint.manifest else []
    epoch = checkpoint.manifest.get("epoch", "\N{EN DASH}")
    return [joined(name), moment(checkpoint.saved), size(checkpoint.size_bytes), epoch, *cells]


def _flat(environment: Facts) -> dict[str, str]:
    flat: dict[str, Any] = {}
    for key, value in environment.items():
        if key == "packages" and isinstance(value, dict):
            flat |= {str(package): version for package, version in value.items()}
        elif key != "attempt":
            flat[key] = " ".join(map(str, value)) if key == "command" and isinstance(value, list) else value
    return {key: "none" if value is None else str(value) for key, value in flat.items()}
