"""Where output goes: everything to the rank's log file, what a person wants to see also to rank 0's terminal."""

import faulthandler
import logging
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.logging import RichHandler

logger = logging.getLogger("effnet")


def redirect_output(log_file: Path, *, to_terminal: bool) -> Console:
    """Send file descriptors 1 and 2, and with them every library's output, to ``log_file``.

    Returns:
        A console on the former standard output, or a silent one unless ``to_terminal``.
    """
    terminal = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()

    to_file = logging.StreamHandler(sys.stderr)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [to_file]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.INFO)
    console = Console(file=terminal, quiet=not to_terminal, soft_wrap=not terminal.isatty())
    if to_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, log_time_format="[%X]")
        logger.addHandler(handler)
    return console
