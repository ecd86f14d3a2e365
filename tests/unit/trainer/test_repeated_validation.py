"""A validation that an attempt did, and ended before it saved again: the next one does it too, and it counts once."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, new_run, rows, train, weights
from trainer.checkpointing import Interrupted
from trainer.signals import StopFlag

LAST = 9
"""Step of the first epoch."""


class SignalledAt(StopFlag):
    """A signal that comes in a step, before its end."""

    def __init__(self, run: RunDirectory, step: int) -> None:
        self._run, self._step = run, step
        self.received_at = None

    @property
    def received(self) -> signal.Signals | None:  # type: ignore[override]
        return signal.SIGTERM if int(rows(self._run)[-1]["step"]) >= self._step else None


def test_a_validation_that_two_attempts_did_has_one_row(
    trained: RunDirectory, toy_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    overrides = toy_overrides(trainer__max_epochs=2, checkpoint__every_n_steps=1, checkpoint__keep_last=100)
    run = new_run(overrides, tmp_path / "first")
    for attempt, step in enumerate((LAST, LAST + 1)):
        with pytest.raises(Interrupted):
            train(run, attempt=attempt, flag=SignalledAt(run, step))
    run = as_killed_after(run, tmp_path / "second", step=LAST)  # after the validation that attempt 1 began with
    train(run, attempt=2)

    def validations(run: RunDirectory) -> list[tuple[str, str]]:
        return [(row["step"], row["val/loss"]) for row in rows(run) if row["val/loss"]]

    assert validations(run) == validations(trained)
    assert not changed(weights(trained, 17), weights(run, 17))
