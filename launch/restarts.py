"""Whether a run that failed is started again, and after how long."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.exit_codes import EXIT_DO_NOT_RETRY, exit_class
from configs.rank_records import HANG, PEER_LOST, rank_errors
from configs.run import RunDirectory
from launch.disk import FAULTS

LONGEST_BACKOFF_S = 300.0
ELSEWHERE = (None, PEER_LOST, HANG, "UnreachableError", "SaveFailedError", "ConnectionRefusedError", "TimeoutError")
"""Types of errors that lie outside of the run: killed without a word, a peer's or the network's end, no progress for
whatever it waits for, a server's or a disk's."""
OF_DISK = re.compile(rf"\[Errno ({'|'.join(map(str, FAULTS))})\]")
"""In the message of an `OSError` of any type: a disk that takes no more now may do so later."""
VARIES = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs between two messages that mean the same: addresses, sizes, numbers of processes and attempts."""


@dataclass
class Restarts:
    """Counts the restarts in a row without a newer checkpoint.

    Attributes:
        limit: Most of these.
        backoff_s: Seconds before the first, give or take half.
        count: Those so far.
    """

    limit: int
    backoff_s: float
    count: int = 0

    def next_backoff_s(self, *, progressed: bool) -> float | None:
        """Seconds to wait before the next start after a failure; None if there is none.

        Args:
            progressed: Whether the attempt that failed left a newer checkpoint than there was before.
        """
        if progressed:
            self.count = 0
        if self.count >= self.limit:
            return None
        doubled_s = min(self.backoff_s * 2.0 ** min(self.count, 100), LONGEST_BACKOFF_S)
        self.count += 1
        return doubled_s * random.uniform(0.5, 1.5)  # many runs on one cluster must not all come back at once


def judged(result: dict[str, Any], run: RunDirectory) -> dict[str, Any]:
    """The outcome of an attempt; with the exit code of what is not to be tried again if the one before it ended alike.

    Whichever launchers have started the two: what the ranks of each left in the run directory tells.
    """
    if result["exit_class"] != "retry" or result.get("rollback"):
        return result
    before = result["attempt"] - 1
    alike = failed_alike(*(rank_errors(run.log_dir(attempt)) for attempt in (result["attempt"], before)))
    if alike is None:
        return result
    code = EXIT_DO_NOT_RETRY
    reason = f"{str(alike['reason']).partition(chr(10))[0]} (attempt {before} failed at the same step in the same way)"
    where = {key: alike[key] for key in ("rank", "host", "step", "error")}
    return {**result, **where, "exit_code": code, "exit_class": exit_class(code), "reason": reason}


def failed_alike(errors: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The error that a rank left in two attempts at the same step, if one did: a third would end so too.

    Args:
        errors: What the ranks left of an attempt, the root cause first.
        before: What they left of the one before.
    """
    if not errors or _is_elsewhere(errors[0]):
        return None
    # Where all ranks fail in the same way, any may be the first to say so.
    known = {_kind(error) for error in before if not _is_elsewhere(error)}
    return next((error for error in errors if _kind(error) in known), None)


def _is_elsewhere(error: Mapping[str, Any]) -> bool:
    return error.get("error") in ELSEWHERE or OF_DISK.search(str(error["reason"])) is not None


def _kind(error: Mapping[str, Any]) -> tuple[object, ...]:
    return error["rank"], error.get("step"), error.get("error"), VARIES.sub("#", str(error["reason"]))
