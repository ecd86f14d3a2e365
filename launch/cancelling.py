"""``effnet cancel``: the end of a run's job, after a checkpoint unless it is wanted at once."""

import os
import re
import signal
import time

from configs.run import RunDirectory
from launch.engines import ENGINES, active_jobs
from launch.inspection import lock_holder
from launch.ledger import request_cancellation
from launch.lock import RunInProgressError

BETWEEN_SIGNALS_S = 0.5


def cancel(run: RunDirectory, *, now: bool) -> str:
    """End what works on a run, and keep it from going back into a queue; returns what was done.

    Raises:
        RunInProgressError: If that is a process on another machine.
    """
    holder = lock_holder(run)
    if holder is not None:
        _signal_launcher(run, holder, now=now)
        return f"{run.run_id}: {holder} {_told(now)}"
    jobs = active_jobs(run)
    if not jobs:
        return f"{run.run_id}: nothing runs"
    request_cancellation(run)
    for submission, _ in jobs:
        engine = ENGINES[submission.engine]
        (engine.end_now if now else engine.checkpoint_and_end)(submission.job_id)
    names = ", ".join(f"{submission.engine} job {submission.job_id}" for submission, _ in jobs)
    return f"{run.run_id}: {names} {_told(now)}"


def _told(now: bool) -> str:
    return "is ended" if now else "was told to checkpoint and end"


def _signal_launcher(run: RunDirectory, holder: str, *, now: bool) -> None:
    """Send one signal to the local launcher, or the second one too, at which it kills all that it has started."""
    found = re.fullmatch(r"process (\d+) on (\S+)", holder)
    if found is None or found[2] != os.uname().nodename:
        raise RunInProgressError(f"{run.path} is worked on by {holder or 'another machine'}; cancel it there")
    try:
        os.kill(int(found[1]), signal.SIGTERM)
        if now:
            time.sleep(BETWEEN_SIGNALS_S)
            os.kill(int(found[1]), signal.SIGTERM)
    except ProcessLookupError:
        if not now:
            message = f"{run.path}: {holder} is gone, and what it started works on; end that"
            raise RunInProgressError(message) from None
