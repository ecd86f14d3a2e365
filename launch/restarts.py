"""Whether a run that failed is started again in place, and after how long."""

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from configs.run import PEER_LOST

LONGEST_BACKOFF_S = 300.0
ELSEWHERE = (None, PEER_LOST, "UnreachableError")
"""Types of errors that lie outside of the run: killed without a word, a peer's or the network's end, a server's."""
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


def failed_alike(errors: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The error that a rank left in two attempts at the same step, if one did: a third would end so too.

    Args:
        errors: What the ranks left of an attempt, the root cause first.
        before: What they left of the one before.
    """
    if not errors or errors[0].get("error") in ELSEWHERE:
        return None
    # Where all ranks fail in the same way, any may be the first to say so.
    known = {_kind(error) for error in before if error.get("error") not in ELSEWHERE}
    return next((error for error in errors if _kind(error) in known), None)


def _kind(error: Mapping[str, Any]) -> tuple[object, ...]:
    return error["rank"], error.get("step"), error.get("error"), VARIES.sub("#", str(error["reason"]))
