"""Locks between processes that the kernel releases when their holder dies, so that none is ever stale."""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
"""What a file system without locks answers, such as Lustre in its default mount."""


@contextmanager
def file_lock(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of that name, which leaves no file behind.

    Args:
        path: A file that has no other use. Its folder exists.
        wait: Until it is free. Otherwise the block runs in any case, and is told whether it has the lock.

    Raises:
        OSError: If the folder cannot be written, or its file system has no locks.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            try:
                held = flock(descriptor, exclusive=True, wait=wait)
            except OSError:
                path.unlink(missing_ok=True)
                raise
            if held and not is_at(descriptor, path):
                continue  # its last holder has removed it: whoever comes now would lock another file
            try:
                yield held
            finally:
                if held:
                    path.unlink(missing_ok=True)
            return
        finally:
            os.close(descriptor)


def flock(descriptor: int, *, exclusive: bool, wait: bool) -> bool:
    """Lock an open file, for as long as it is open; whether that was possible."""
    kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    try:
        fcntl.flock(descriptor, kind if wait else kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file still is the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
