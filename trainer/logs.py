"""Where output goes: everything to the rank's log file, what a person wants to see also to rank 0's terminal."""

import faulthandler
import io
import logging
import os
import signal
import sys
import time
from pathlib import Path

from rich.console import Console

logger = logging.getLogger("effnet")


class _Terminal(io.TextIOWrapper):
    """Text for a person, who may go away: with a closed pipe or a lost terminal, training goes on in silence."""

    _gone = False

    def write(self, text: str, /) -> int:
        if not self._gone:
            try:
                return super().write(text)
            except OSError:
                self._gone = True
        return len(text)

    def flush(self) -> None:
        if not self._gone:
            try:
                super().flush()
            except OSError:
                self._gone = True


class _ConsoleHandler(logging.Handler):
    """Prints a record on one line, above a progress bar if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        style = "yellow" if record.levelno >= logging.WARNING else None
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock}  {record.getMessage()}"
        self._console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)


def redirect_output(log_file: Path, *, to_terminal: bool, quiet: bool = False) -> Console:
    """Send file descriptors 1 and 2, and with them every library's output, to ``log_file``.

    Where it is ``quiet``, of what is logged a person sees no more than warnings.

    Returns:
        A console on the former standard output, or a silent one unless ``to_terminal``.
    """
    terminal = _Terminal(os.fdopen(os.dup(1), "wb"), encoding="utf-8", line_buffering=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
    faulthandler.enable()
    if hasattr(signal, "SIGUSR2"):
        faulthandler.register(signal.SIGUSR2)  # shows the stacks of all threads, whatever they are at

    to_file = logging.StreamHandler(sys.stderr)
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers = [to_file]
    root.setLevel(logging.WARNING)
    logger.setLevel(logging.DEBUG)
    console = Console(file=terminal, quiet=not to_terminal)
    if to_terminal:
        handler = _ConsoleHandler(console)
        handler.setLevel(logging.WARNING if quiet else logging.INFO)
        logger.addHandler(handler)
    return console
