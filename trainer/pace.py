"""At which steps the ranks ask each other what they have seen."""

import math
import time
from collections.abc import Callable

SECONDS = 0.4
"""About the time between two agreements, where steps are shorter."""
MOST_STEPS = 8
"""A step may come to take many times as long: then a signal has waited for that many of them."""


def steps_between(step_s: float) -> int:
    """Steps from one agreement to the next, for steps that take so many seconds on the slowest rank."""
    return min(max(math.ceil(SECONDS / step_s), 1), MOST_STEPS) if step_s > 0 else 1


class Pace:
    """Every step, until it is known how long they take on the slowest rank; then about every 0.4 seconds.

    All ranks agree on that time with their votes, so that all ask at the same steps.
    """

    def __init__(self, every_n_steps: int | None, *, clock: Callable[[], float] = time.monotonic) -> None:
        """A number of steps holds whatever the time they take."""
        self._every_n_steps = every_n_steps
        self._clock = clock
        self._next = 0
        self._last: tuple[int, float] | None = None

    def asks(self, step: int) -> bool:
        """Whether the ranks ask each other after this optimizer step."""
        if self._every_n_steps is not None:
            return step % self._every_n_steps == 0
        return step >= self._next

    def step_s(self, step: int) -> float:
        """Seconds that each step has taken on this rank since the last call; 0 at first. A validation counts in."""
        now, last = self._clock(), self._last
        self._last = step, now
        return 0.0 if last is None or step <= last[0] else (now - last[1]) / (step - last[0])

    def agreed(self, step: int, *, slowest_step_s: float) -> None:
        """What the ranks' last votes said, read by all of them at this step."""
        self._next = step + steps_between(slowest_step_s)
