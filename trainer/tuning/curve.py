"""What a learning-rate sweep says: the smoothed loss, and the rate to begin with. Pure functions."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

WIDTH = 0.03
"""Standard deviation of the smoothing kernel, as a share of the sweep's steps: 3 of 100."""
SKIPPED = 0.1
"""Share of the steps, at the beginning, that are not suggested; as Lightning's ``skip_begin`` of 100 steps."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """Learning rates that a sweep points to.

    Attributes:
        lr: Where the smoothed loss falls fastest by the logarithm of the rate, before its minimum.
        lowest_lr: Where it is lowest.
    """

    lr: float
    lowest_lr: float


def smoothed(losses: Sequence[float], *, steps: int) -> Floats:
    """(n,) losses averaged with their neighbours on both sides, by a Gaussian.

    A running mean of the past alone would move all that it shows to larger rates.

    Args:
        losses: Of each step.
        steps: Of the whole sweep, whose rates are evenly spaced by their logarithm.
    """
    place = np.arange(len(losses))
    weights = np.exp(-0.5 * ((place[:, None] - place) / max(WIDTH * steps, 1e-6)) ** 2)
    averaged: Floats = weights @ np.asarray(losses, dtype=np.float64) / weights.sum(1)
    return averaged


def suggest(lrs: Sequence[float], losses: Sequence[float], *, steps: int) -> Suggestion | None:
    """The rates that a sweep points to; None if the loss has not fallen by more than it varies from step to step.

    Args:
        lrs: Of each step, evenly spaced by their logarithm.
        losses: Of each step, finite.
        steps: Of the whole sweep, of which the last may not have been taken.
    """
    begin = round(SKIPPED * steps)
    if len(losses) < begin + 3:
        return None
    curve = smoothed(losses, steps=steps)
    lowest = begin + int(curve[begin:].argmin())
    noise = float(np.std(np.asarray(losses[: lowest + 1]) - curve[: lowest + 1]))
    if lowest == begin or curve[begin] - curve[lowest] <= noise:
        return None
    slope = np.gradient(curve)
    steepest = begin + int(slope[begin : lowest + 1].argmin())
    return Suggestion(lr=float(lrs[steepest]), lowest_lr=float(lrs[lowest]))
