"""One launcher at a time works on a run."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from configs.run import RunDirectory


class RunInProgressError(Exception):
    """Another launcher, or what it has started, is still at work on the run."""


@contextmanager
def locked(run: RunDirectory) -> Iterator[int]:
    """Hold the run's lock; gives the descriptor, which a child may inherit to hold it for as long as it lives.

    Raises:
        RunInProgressError: If it is held already.
    """
    descriptor = os.open(run.lock_file, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip()
        os.close(descriptor)
        raise RunInProgressError(f"{run.path} is in progress, started by {holder}; end that first") from None
    try:
        with suppress(OSError):  # of a full disk: the lock is held all the same
            os.truncate(descriptor, 0)
            os.pwrite(descriptor, f"process {os.getpid()} on {os.uname().nodename}\n".encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)
