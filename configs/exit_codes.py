"""The exit codes of runs, the same on every launcher."""

from typing import Final

EXIT_DONE: Final = 0
EXIT_INTERRUPTED: Final = 85
"""Checkpointed after a signal: run me again."""
EXIT_DO_NOT_RETRY: Final = 93
"""Configuration, data or code is at fault."""
EXIT_RETRY: Final = 1
"""Stands for all other exit codes: run me again, a bounded number of times."""


def exit_class(code: int) -> str:
    """One word for an exit code, the same on every launcher."""
    return {EXIT_DONE: "done", EXIT_INTERRUPTED: "interrupted", EXIT_DO_NOT_RETRY: "do_not_retry"}.get(code, "retry")
