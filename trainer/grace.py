"""What is left of the time that a scheduler gives after a signal, once the checkpoint is written."""

import math
import os
import time
from collections.abc import Mapping

from configs.run import GRACE
from trainer.logs import logger
from trainer.signals import StopFlag

USUAL_S = 30.0
"""From a signal to the kill, where nothing else is known: Slurm's KillWait, Kubernetes' own default, a spot machine."""
RESERVE_S = 5.0
"""For what comes after the trainer: the outcome, the request to be put back into the queue."""
LEAST_S = 5.0
"""A server that answers takes 1 to 3 s; by now there may be none left, and there may be more than is known."""


def left_s(flag: StopFlag, environment: Mapping[str, str] = os.environ) -> float:
    """Seconds in which an attempt that was told to stop should have ended.

    They count from the signal; on a rank that has not got it, or at the end of `fault.max_time_minutes`, from now.
    """
    gone_s = 0.0 if flag.received_at is None else time.monotonic() - flag.received_at
    return max(_grace_s(environment) - RESERVE_S - gone_s, LEAST_S)


def _grace_s(environment: Mapping[str, str]) -> float:
    text = environment.get(GRACE, str(USUAL_S))
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds >= 0:
        logger.warning("%s=%s is no number of seconds: %.0f are taken", GRACE, text, USUAL_S)
        return USUAL_S
    return seconds
