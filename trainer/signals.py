"""A flag that signals set. The handlers do nothing else: collectives inside a handler deadlock.

See https://github.com/Lightning-AI/pytorch-lightning/issues/21406. Standard library only, so that it is in place before
torch is imported.
"""

import os
import signal
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """Remembers the first signal; a second one ends the process at once.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None

    def install(self) -> "StopFlag":
        """Take over SIGTERM, SIGINT and SIGUSR1."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        return self

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = signal.Signals(number)
