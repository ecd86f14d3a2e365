"""The section about attempts and faults: the timeline, an attempt a row, and what went wrong inside of them."""

from collections.abc import Iterable, Sequence
from typing import Any

from launch.reporting.markup import Markup, joined, tag
from launch.reporting.record import Attempt, Record, rollback_in_words
from launch.reporting.timeline import SYMBOLS, WORDS, style_of, timeline
from launch.reporting.wording import duration, moment

MOST_STEPS = 50
"""Steps that were not finite which are shown; the file has all."""
MOST_NAMES = 5


def pill(exit_class: str, text: str | None = None) -> Markup:
    """How something ended, in colour and with a sign."""
    style = style_of(exit_class)
    sign = tag("i", SYMBOLS[style], aria_hidden="true")
    return tag("span", sign, text or WORDS.get(exit_class, exit_class), class_=f"pill {style}")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], *, style: str = "") -> Markup:
    """A table whose rows become cards on a narrow screen."""
    head = tag("thead", tag("tr", *(tag("th", heading, scope="col") for heading in headings)))
    body = tag(
        "tbody",
        *(
            tag("tr", *(tag("td", cell, data_label=heading) for heading, cell in zip(headings, row, strict=True)))
            for row in rows
        ),
    )
    return tag("div", tag("table", head, body, class_=f"stacked {style}".strip()), class_="scroll")


def fact_table(facts: Iterable[tuple[object, object]]) -> Markup:
    """What is what, a line each."""
    rows = (tag("tr", tag("th", what, scope="row"), tag("td", value)) for what, value in facts)
    return tag("div", tag("table", tag("tbody", *rows), class_="facts"), class_="scroll")


def attempts_section(record: Record) -> Markup:
    """All of it."""
    if not record.attempts:
        return tag("p", "No attempt has begun.", class_="empty")
    headings = ("attempt", "began (UTC)", "took", "processes", "went on from", "ended", "where", "why")
    drawn = timeline(record)
    key = tag(
        "p", "Bars are attempts, ticks below them checkpoints that are still there. Triangles: faults.", class_="note"
    )
    return joined(
        [
            joined([drawn, key]) if drawn is not None else "",
            table(headings, map(_row, record.attempts), style="attempts"),
            _other_errors(record.attempts),
            _rollbacks(record.rollbacks),
            _nonfinite(record.nonfinite),
        ]
    )


def _row(attempt: Attempt) -> list[object]:
    environment = attempt.environment
    start = str(environment.get("resumed_from") or "").rpartition("/")[2]
    step = start.removeprefix("step-")
    start = f"step {int(step):,}" if step != start and step.isdecimal() else start
    return [
        attempt.number,
        moment(attempt.started),
        duration(attempt.seconds),
        environment.get("world_size", "\N{EN DASH}"),
        start or ("the beginning" if environment else "\N{EN DASH}"),
        pill(attempt.exit_class),
        attempt.culprit or "\N{EN DASH}",
        attempt.reason or "\N{EN DASH}",
    ]


def _other_errors(attempts: Sequence[Attempt]) -> Markup:
    """What all ranks left, where there is more than the attempts' rows say."""
    rows = [
        (
            attempt.number,
            f"{error.get('rank', '?')} on {error.get('host', '?')}",
            error.get("step"),
            tag("pre", error.get("reason")),
        )
        for attempt in attempts
        for error in attempt.errors
    ]
    if not rows:
        return Markup("")
    what = table(("attempt", "rank", "step", "what it left"), rows)
    return tag("details", tag("summary", f"What each rank said at its end ({len(rows)})"), what)


def _rollbacks(entries: Sequence[dict[str, Any]]) -> Markup:
    if not entries:
        return Markup("")
    rows = [(moment(_time(entry)), rollback_in_words(entry)) for entry in entries]
    return joined([tag("h3", f"Went back to an earlier checkpoint ({len(rows)})"), table(("when (UTC)", "why"), rows)])


def _nonfinite(entries: Sequence[dict[str, Any]]) -> Markup:
    if not entries:
        return Markup("")
    rows = [
        (entry.get("step"), entry.get("what"), entry.get("action"), entry.get("attempt"), _samples(entry))
        for entry in entries[-MOST_STEPS:]
    ]
    more = f", the last {MOST_STEPS} of them" if len(entries) > MOST_STEPS else ""
    title = tag("h3", f"Steps that were not finite ({len(entries):,}{more})")
    return joined([title, table(("step", "what", "then", "attempt", "samples"), rows)])


def _samples(entry: dict[str, Any]) -> str:
    batches = entry.get("micro_batches")
    found = [batch.get("samples") for batch in batches if isinstance(batch, dict)] if isinstance(batches, list) else []
    samples = [sample for each in found if isinstance(each, list) for sample in each if isinstance(sample, dict)]
    names = [str(sample.get("key")) for sample in samples]
    return ", ".join([*names[:MOST_NAMES], *([f"and {len(names) - MOST_NAMES} more"] if names[MOST_NAMES:] else [])])


def _time(entry: dict[str, Any]) -> float | None:
    time = entry.get("time")
    return float(time) if isinstance(time, int | float) else None
