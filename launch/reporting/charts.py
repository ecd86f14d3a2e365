"""A chart of lines as SVG: axes, lines, where attempts begin, and values for whoever points at it. No script."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from launch.reporting.markup import Markup, tag
from launch.reporting.scales import Scale, scale_of, tick_label
from launch.reporting.series import Metrics, thinned
from launch.reporting.wording import number

WIDTH, HEIGHT = 480.0, 250.0
LEFT, RIGHT, TOP, BOTTOM = 66.0, 470.0, 10.0, 206.0
"""The field of the lines, in units of the drawing; ticks' numbers stand left of it and below."""
MOST_BANDS = 120
"""Parts of a chart that each say their values."""
FEW = 40
"""Points up to which each has a dot."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart.

    Attributes:
        label: What it is.
        style: Its class in the page's style sheet, which gives it a colour and dashes.
        steps: Optimizer steps of its points, in order.
        xs: Their places along the axis, epochs or steps.
        values: Their values; where one is not finite the line breaks.
    """

    label: str
    style: str
    steps: Sequence[int]
    xs: Sequence[float]
    values: Sequence[float]


@dataclass(frozen=True, kw_only=True)
class Chart:
    """What a chart shows.

    Attributes:
        title: Above it.
        lines: At least one.
        axis: ``epoch`` or ``step``.
        percent: Whether values are shares.
        from_zero: Whether the axis begins at zero.
        reach: Largest place along the axis, which begins at 0: the same for all charts of a page.
        marks: Places along the axis at which attempts begin, with what to say there.
    """

    title: str
    lines: Sequence[Line]
    axis: str
    reach: float
    percent: bool = False
    from_zero: bool = False
    marks: Sequence[tuple[float, str]] = ()


def line_of(metrics: Metrics, name: str, *, label: str, style: str, by_epoch: bool) -> Line | None:
    """The line of a metric; None where no row has it."""
    column = metrics.columns.get(name)
    if column is None or not column.rows:
        return None
    kept = thinned(column.values)
    rows = [column.rows[place] for place in kept]
    steps = [metrics.steps[row] for row in rows]
    xs = [metrics.epochs[row] for row in rows] if by_epoch else [float(step) for step in steps]
    return Line(label=label, style=style, steps=steps, xs=xs, values=[column.values[place] for place in kept])


def draw(chart: Chart) -> Markup:
    """The chart with its title and legend."""
    values = [value for line in chart.lines for value in line.values]
    across = Scale(0.0, chart.reach or 1.0, LEFT, RIGHT)
    up = scale_of(values, BOTTOM, TOP, from_zero=chart.from_zero, may_be_log=not chart.percent)
    drawing = tag(
        "svg",
        *_axes(chart, across, up),
        *(_mark(across(x)) for x, _ in chart.marks),
        *(_line(line, across, up) for line in chart.lines),
        *_bands(chart, across),
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        aria_label=_in_words(chart),
        class_="chart",
    )
    unit = " (logarithmic)" if up.log else ""
    title = tag("h3", chart.title, tag("small", unit) if unit else "")
    legend = tag("ul", *(_legend(line, chart) for line in chart.lines), class_="legend")
    return tag("figure", tag("figcaption", title, legend), drawing)


def _axes(chart: Chart, across: Scale, up: Scale) -> list[Markup]:
    parts = []
    ticks = up.ticks()
    for value in ticks:
        y = up(value)
        label = tick_label(value, ticks, percent=chart.percent, log=up.log)
        parts.append(tag("line", x1=LEFT, x2=RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid"))
        parts.append(tag("text", label, x=LEFT - 8, y=f"{y + 3.8:.1f}", text_anchor="end"))
    places = across.ticks(6)
    for value in places:
        label = tick_label(value, places)
        parts.append(tag("text", label, x=f"{across(value):.1f}", y=BOTTOM + 20, text_anchor="middle"))
    parts.append(tag("text", chart.axis, x=RIGHT, y=HEIGHT - 5, text_anchor="end", class_="axis"))
    return parts


def _mark(x: float) -> Markup:
    return tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1=TOP, y2=BOTTOM, class_="mark")


def _line(line: Line, across: Scale, up: Scale) -> Markup:
    points: list[tuple[float, float] | None] = [
        (across(x), up(value)) if math.isfinite(value) and math.isfinite(x) else None
        for x, value in zip(line.xs, line.values, strict=True)
    ]
    path, pen = [], "M"
    for point in points:
        if point is None:
            pen = "M"
            continue
        path.append(f"{pen}{point[0]:.1f} {point[1]:.1f}")
        pen = "L"
    found = [point for point in points if point is not None]
    dots = found if len(found) <= FEW else []
    return tag(
        "g",
        tag("path", d="".join(path), fill="none"),
        *(tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r=2.2) for x, y in dots),
        class_=line.style,
    )


def _bands(chart: Chart, across: Scale) -> list[Markup]:
    """Upright stripes, side by side, that show the values of all lines where one points at them."""
    xs = sorted({x for line in chart.lines for x in line.xs})
    count = min(len(xs), MOST_BANDS)
    groups = [xs[part * len(xs) // count : (part + 1) * len(xs) // count] for part in range(count)]
    edges = [LEFT, *(across((a[-1] + b[0]) / 2) for a, b in pairwise(groups)), RIGHT]
    found = [_by_group(line, groups) for line in chart.lines]
    bands = []
    for place, group in enumerate(groups):
        here = [(line, each[place]) for line, each in zip(chart.lines, found, strict=True) if place in each]
        step = max(line.steps[at] for line, at in here)
        where = f"step {step:,}" if chart.axis == "step" else f"epoch {group[-1]:.4g}, step {step:,}"
        said = [text for x, text in chart.marks if group[0] <= x <= group[-1]]
        lines = [f"{line.label}: {number(line.values[at], percent=chart.percent)}" for line, at in here]
        left, right = edges[place], edges[place + 1]
        box = {"x": f"{left:.1f}", "y": TOP, "width": f"{max(right - left, 0.1):.1f}", "height": BOTTOM - TOP}
        bands.append(tag("rect", tag("title", "\n".join([where, *lines, *said])), **box, class_="band"))
    return bands


def _by_group(line: Line, groups: list[list[float]]) -> dict[int, int]:
    """Of each group of places that the line has points in, the place of the last of them."""
    of = {x: number for number, group in enumerate(groups) for x in group}
    return {of[x]: at for at, x in enumerate(line.xs)}


def _legend(line: Line, chart: Chart) -> Markup:
    key = tag("svg", tag("path", d="M0 5H22"), class_=f"key {line.style}", viewBox="0 0 22 10", aria_hidden="true")
    last = next((value for value in reversed(line.values) if math.isfinite(value)), None)
    broken = sum(not math.isfinite(value) for value in line.values)
    more = tag("em", f" ({broken} not finite)") if broken else ""
    return tag("li", key, tag("span", line.label), " ", tag("b", number(last, percent=chart.percent)), more)


def _in_words(chart: Chart) -> str:
    said = []
    for line in chart.lines:
        finite = [value for value in line.values if math.isfinite(value)]
        if finite:
            first, last = (number(value, percent=chart.percent) for value in (finite[0], finite[-1]))
            said.append(f"{line.label} from {first} to {last}")
    return f"{chart.title} by {chart.axis}: " + "; ".join(said)
