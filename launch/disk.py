"""What launchers say and do where a disk takes no more: one clear error, and an exit code to be tried again by."""

import errno
from collections.abc import Mapping
from typing import Any

from configs.exit_codes import EXIT_DONE, EXIT_RETRY, exit_class
from configs.run import RunDirectory

FAULTS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)
"""Full, out of quota, read-only, broken."""


def fault_of_disk(error: BaseException) -> str | None:
    """What is wrong with which file, in a line; None if an error is not a disk's."""
    if not isinstance(error, OSError) or error.errno not in FAULTS:
        return None
    return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)


def recorded(result: Mapping[str, Any], run: RunDirectory) -> dict[str, Any]:
    """Record how an attempt ended, and return that; it says so where the disk does not take it.

    Then a run that is done is to be started again: as soon as there is room, it says that it is done.
    """
    try:
        run.record_outcome(result)
    except OSError as error:
        fault = fault_of_disk(error)
        if fault is None:
            raise
        code = EXIT_RETRY if result["exit_code"] == EXIT_DONE else result["exit_code"]
        reason = f"{result['reason']}, and the outcome cannot be written: {fault}"
        return {**result, "exit_code": code, "exit_class": exit_class(code), "reason": reason}
    return dict(result)
