"""What a sweep's losses point to."""

import numpy as np
import pytest

from trainer.tuning.curve import smoothed, suggest

STEPS = 100
LRS = np.geomspace(1e-6, 10, STEPS)


def losses(noise: float, seed: int = 0) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    """Flat at 4, a fall to 1 that is steepest at 1e-3, a rise after 1e-1."""
    place = np.log10(LRS)
    curve = 4 - 3 / (1 + np.exp(-4 * (place + 3))) + 30 / (1 + np.exp(-4 * (place - 0.5)))
    return curve + np.random.default_rng(seed).normal(0, noise, STEPS)


@pytest.mark.parametrize("seed", range(5))
def test_the_rate_at_which_the_loss_falls_fastest_is_found_in_noise(seed: int) -> None:
    found = suggest(list(LRS), list(losses(0.2, seed)), steps=STEPS)

    assert found is not None
    assert 4e-4 < found.lr < 2.5e-3
    assert 1e-2 < found.lowest_lr < 0.5


def test_smoothing_moves_no_slope_to_larger_rates() -> None:
    found = suggest(list(LRS), list(losses(0)), steps=STEPS)

    assert found is not None
    assert found.lr == pytest.approx(1e-3, rel=0.2)


@pytest.mark.parametrize("shape", ["flat", "rising", "short"])
def test_nothing_is_suggested_where_the_loss_does_not_fall(shape: str) -> None:
    values = np.random.default_rng(0).normal(4, 0.1, STEPS)
    values = {"flat": values, "rising": values + LRS, "short": values[:11]}[shape]

    assert suggest(list(LRS[: len(values)]), list(values), steps=STEPS) is None


def test_a_constant_stays_what_it_is_at_both_ends() -> None:
    assert smoothed([2.0] * 30, steps=STEPS) == pytest.approx([2.0] * 30)
    assert len(smoothed([], steps=STEPS)) == 0
