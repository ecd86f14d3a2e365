"""Memory of tensors on the CPU: what a step frees is kept for the next, which need not ask the system for it."""

import ctypes
import os

TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
"""Names of glibc's ``mallopt``, of malloc.h."""
LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Have glibc's malloc give no freed memory back to the system while this process lives.

    By default it maps large blocks and cuts off the end of its heap again and again, and every step pays for fresh
    pages: B0's activations at batch 16 took up to 190,000 page faults a step in each of two ranks, a third of their
    time (docs/LOG.md). What the process has at its peak it keeps. GPUs have torch's caching allocator instead.

    Returns:
        Whether it was done: not without glibc, and not where the environment has settings of its own.
    """
    if any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    return mallopt is not None and bool(mallopt(MMAP_THRESHOLD, LARGEST) and mallopt(TRIM_THRESHOLD, LARGEST))
