"""How long W&B may hold up an attempt that was told to stop."""

import time

import pytest

from configs.run import GRACE
from trainer.grace import LEAST_S, RESERVE_S, USUAL_S, left_s
from trainer.signals import StopFlag


@pytest.mark.parametrize(
    ("known", "gone_s", "expected"),
    [
        (None, None, USUAL_S - RESERVE_S),
        (None, 10.0, USUAL_S - RESERVE_S - 10),
        ("600", 10.0, 600 - RESERVE_S - 10),
        ("20", 3.0, 20 - RESERVE_S - 3),
        ("20", 40.0, LEAST_S),
    ],
)
def test_the_time_that_is_left_counts_from_the_signal(known: str | None, gone_s: float | None, expected: float) -> None:
    flag = StopFlag()
    flag.received_at = None if gone_s is None else time.monotonic() - gone_s
    assert left_s(flag, {} if known is None else {GRACE: known}) == pytest.approx(expected, abs=0.5)


@pytest.mark.parametrize("text", ["soon", "nan", "-1", ""])
def test_what_is_no_number_of_seconds_is_said_and_ends_nothing(text: str, caplog: pytest.LogCaptureFixture) -> None:
    assert left_s(StopFlag(), {GRACE: text}) == USUAL_S - RESERVE_S
    assert caplog.text.count(f"{GRACE}={text} is no number of seconds: 30 are taken") == 1
