"""A flag that signals set. The handlers do nothing else: collectives inside a handler deadlock.

See https://github.com/Lightning-AI/pytorch-lightning/issues/21406. Standard library only, so that it is in place before
torch is imported.
"""

import ctypes
import os
import signal
import threading
import time
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


ECHO_S = 1.0
"""One stop may arrive twice: sent to all processes of a job, and passed on by the launcher."""
_SIG_DFL = 0


class StopFlag:
    """Remembers the first signal; a second one, later than an echo of it, ends the process at once.

    Python runs handlers in the main thread between two of its instructions, so not while that waits in C++ for a peer
    that is gone. What the interpreter itself writes for each signal is therefore read by a thread. After the first one
    it gives the signals back to the kernel, which needs no thread to end the process.

    Attributes:
        received: The first signal, or None.
        received_at: When that was, by the monotonic clock.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.received_at: float | None = None

    def install(self) -> "StopFlag":
        """Take over SIGTERM, SIGINT and SIGUSR1. In the main thread only, as Python wants it."""
        reads, writes = os.pipe()
        os.set_blocking(writes, False)
        signal.set_wakeup_fd(writes, warn_on_full_buffer=False)
        # What comes to a forked child, a worker of a loader, is not meant for this process.
        os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))
        threading.Thread(target=self._listen, args=(reads,), name="signals", daemon=True).start()
        for number in SIGNALS:
            signal.signal(number, self._handle)
        # A launcher may hold them back until here.
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        return self

    def _listen(self, descriptor: int) -> None:
        while self.received is None:
            (number,) = os.read(descriptor, 1)
            if number in SIGNALS:
                self._handle(number, None)
        time.sleep(ECHO_S)
        library = ctypes.CDLL(None)  # Python's own signal.signal is for the main thread alone
        library.signal.argtypes = (ctypes.c_int, ctypes.c_void_p)
        for known in SIGNALS:
            library.signal(known, _SIG_DFL)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received_at = time.monotonic()
            self.received = signal.Signals(number)
