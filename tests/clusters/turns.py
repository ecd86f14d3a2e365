"""What is one for a whole machine (names, addresses, ports of pretended hosts) is had by one test suite at a time."""

import fcntl
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def alone(lock: Path, what: str) -> Iterator[None]:
    """Wait until nobody else on this machine has it, and say so. A process that is killed has it no more."""
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            assert sys.__stderr__ is not None  # not pytest's, which keeps it until the test has ended
            sys.__stderr__.write(f"waiting until {what} of another test suite is down ({lock})\n")
            sys.__stderr__.flush()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
