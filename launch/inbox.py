"""The signals that a launcher has received, kept until somebody looks."""

import signal
from collections.abc import Callable
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)


class SignalInbox:
    """Takes over the signals of this process while it is entered. A terminal that closes counts as SIGTERM.

    Attributes:
        received: Whether any has come.
    """

    def __init__(self) -> None:
        self.received = False
        self._queue: SimpleQueue[int] = SimpleQueue()
        self._previous: dict[signal.Signals, Callable[[int, FrameType | None], Any] | int | None] = {}

    def __enter__(self) -> "SignalInbox":
        # Under nohup a hang-up stays without effect.
        heard = [number for number in SIGNALS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
        self._previous = {number: signal.signal(number, self._remember) for number in heard}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def put(self, number: int) -> None:
        """Add what is no signal, such as word of a child's end."""
        self._queue.put(number)

    def get(self, timeout_s: float | None = None) -> int | None:
        """The oldest one, waited for; None if none comes in time."""
        try:
            return self._queue.get(timeout=timeout_s)
        except Empty:
            return None

    def _remember(self, number: int, _: FrameType | None) -> None:
        self.received = True
        self._queue.put(signal.SIGTERM if number == signal.SIGHUP else number)
