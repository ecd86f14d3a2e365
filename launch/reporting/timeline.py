"""The attempts of a run along the clock, as SVG, with what happened in them."""

from collections.abc import Sequence
from dataclasses import dataclass

from launch.reporting.markup import Markup, tag
from launch.reporting.record import RUNNING, UNRECORDED, Attempt, Record, events
from launch.reporting.wording import duration, moment

TOP, THICK, HEIGHT = 20, 26, 64
"""Of the bars, in pixels; above them is what went wrong, below them are checkpoints. Places along are in percent."""
LATEST_S = 60.0
"""Seconds after an attempt's end in which something of it may still happen."""
NARROWEST, NARROWEST_LABELLED = 0.5, 9.0
LONGEST_GAP = 0.04
"""Share of all work that a pause between two attempts is drawn as, at most: some wait for days in a queue."""
WORDS = {
    "done": "done",
    "interrupted": "interrupted",
    "retry": "failed",
    "do_not_retry": "failed for good",
    RUNNING: "running",
    UNRECORDED: "no word",
}
"""How attempts end, for a person."""
STYLES = {"done": "done", "interrupted": "paused", "retry": "failed", "do_not_retry": "fatal", RUNNING: "running"}


SYMBOLS = {
    "done": "\N{CHECK MARK}",
    "paused": "\N{DOUBLE VERTICAL LINE}",
    "failed": "\N{MULTIPLICATION SIGN}",
    "fatal": "\N{MULTIPLICATION SIGN}",
    "running": "\N{BLACK RIGHT-POINTING TRIANGLE}",
    "unknown": "?",
}
"""So that the colour is not all that tells endings apart."""
FAULTS = ("failed", "fatal", "unknown")


def style_of(exit_class: str) -> str:
    """The class of an ending in the page's style sheet."""
    return STYLES.get(exit_class, "unknown")


@dataclass(frozen=True)
class Clock:
    """From time to a place: long pauses are shortened."""

    pieces: Sequence[tuple[float, float, float, float]]
    """(begin, end, place of the begin, place of the end), one after the other."""

    def __call__(self, time: float) -> float:
        """The place of a time; of one outside of all pieces, the nearest."""
        for begin, end, left, right in self.pieces:
            if time <= end:
                share = (max(time, begin) - begin) / (end - begin) if end > begin else 0.0
                return left + share * (right - left)
        return self.pieces[-1][3]


def clock_of(attempts: Sequence[tuple[float, float]]) -> Clock:
    """A clock over (begin, end) of attempts, in order."""
    worked = sum(end - begin for begin, end in attempts) or 1.0
    spans: list[tuple[float, float, float]] = []
    at = attempts[0][0]
    for begin, end in attempts:
        begin = max(begin, at)
        if begin > at:
            spans.append((at, begin, min(begin - at, LONGEST_GAP * worked)))
        spans.append((begin, max(end, begin), max(end - begin, NARROWEST / 100 * worked)))
        at = max(end, begin)
    unit = 100 / sum(width for *_, width in spans)
    pieces, place = [], 0.0
    for begin, end, width in spans:
        pieces.append((begin, end, place, place + width * unit))
        place += width * unit
    return Clock(pieces)


def timeline(record: Record) -> Markup | None:
    """All attempts whose times are known; None without any."""
    timed = [
        (attempt.started, max(attempt.ended or attempt.started, attempt.started), attempt)
        for attempt in record.attempts
        if attempt.started is not None
    ]
    timed.sort(key=lambda each: each[:2])
    if not timed:
        return None
    clock = clock_of([(begin, end) for begin, end, _ in timed])
    bars = [_bar(attempt, clock(begin), clock(end)) for begin, end, attempt in timed]
    ends = [(end, "failed", _ending(each)) for _, end, each in timed if style_of(each.exit_class) in FAULTS]
    first, last = timed[0][0], max(end for _, end, _ in timed)
    # Files of a run that was copied may be as young as the copy.
    happened = [each for each in (*ends, *events(record)) if first <= each[0] <= last + LATEST_S]
    marks = [_event(clock(time), kind, said, time) for time, kind, said in happened]
    words = "; ".join(f"attempt {attempt.number} {WORDS.get(attempt.exit_class, '')}" for *_, attempt in timed)
    svg = tag(
        "svg",
        *bars,
        *marks,
        width="100%",
        height=HEIGHT,
        role="img",
        aria_label=f"Timeline: {words}",
        class_="timeline",
    )
    clock_face = tag("div", tag("span", moment(first), " UTC"), tag("span", moment(last), " UTC"), class_="ends")
    return tag("figure", svg, clock_face, class_="wide")


def _ending(attempt: Attempt) -> str:
    ending = WORDS.get(attempt.exit_class, attempt.exit_class)
    said = f"attempt {attempt.number}: {ending} after {duration(attempt.seconds)}"
    return "\n".join([said, *filter(None, (attempt.culprit, attempt.reason))])


def _bar(attempt: Attempt, left: float, right: float) -> Markup:
    width = max(right - left - 0.15, NARROWEST / 2)
    style = style_of(attempt.exit_class)
    box = {"x": f"{left:.2f}%", "y": TOP, "width": f"{width:.2f}%", "height": THICK, "rx": 3}
    bar = tag("rect", tag("title", _ending(attempt)), class_=f"bar {style}", **box)
    if width < NARROWEST_LABELLED:
        return bar
    label = f"{SYMBOLS[style]} {attempt.number}"
    middle = f"{left + width / 2:.2f}%"
    return tag("g", bar, tag("text", label, x=middle, y=TOP + THICK / 2 + 4.5, text_anchor="middle"))


def _event(x: float, kind: str, said: str, time: float) -> Markup:
    title = tag("title", f"{moment(time)} UTC: {said}")
    if kind == "checkpoint":
        return tag("rect", title, x=f"{min(x, 99.7):.2f}%", y=TOP + THICK + 6, width=3, height=9, class_="saved")
    sign = tag("path", title, d=f"M0 {TOP - 4}l-6 -11h12z", class_=f"event {kind}")
    return tag("svg", sign, x=f"{x:.2f}%", overflow="visible")
