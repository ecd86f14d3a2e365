"""A folder for the temporary files of a command and all that it starts, some of which leave theirs behind."""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

COMPILED = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable: where torch.compile keeps what it has compiled."""


@contextmanager
def temporary_files(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The environment with a TMPDIR that is gone at the end.

    torchrun, W&B's client and multiprocessing leave folders there at each attempt, and everything does that is killed.
    What torch.compile has compiled stays for the next attempt, and for other runs.
    """
    parent = tempfile.gettempdir()
    kept = {COMPILED: os.path.join(parent, f"torchinductor_{os.getuid()}")}
    with tempfile.TemporaryDirectory(prefix="effnet-", dir=parent, ignore_cleanup_errors=True) as folder:
        yield {**kept, **environment, "TMPDIR": folder}
