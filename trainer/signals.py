"""A flag that signals set. The handlers do nothing else: collectives inside a handler deadlock.

See https://github.com/Lightning-AI/pytorch-lightning/issues/21406. Standard library only, so that it is in place before
torch is imported.
"""

import os
import signal
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


ECHO_S = 1.0
"""One stop may arrive twice: sent to all processes of a job, and passed on by the launcher."""


class StopFlag:
    """Remembers the first signal; a second one, later than an echo of it, ends the process at once.

    Attributes:
        received: The first signal, or None.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._since = 0.0

    def install(self) -> "StopFlag":
        """Take over SIGTERM, SIGINT and SIGUSR1."""
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # A launcher may hold them back until here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self._since = signal.Signals(number), time.monotonic()
        elif time.monotonic() - self._since > ECHO_S:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
