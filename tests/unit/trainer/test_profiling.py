import gzip
import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, new_run, train, weights

Overrides = Callable[..., list[str]]


def steps(run: RunDirectory, name: str) -> int:
    """Optimizer steps in a trace."""
    with gzip.open(run.path / "traces" / name) as text:
        found = json.load(text)["traceEvents"]
    return sum(event["name"].startswith("Optimizer.step#") for event in found if event.get("ph") == "X")


@pytest.fixture(scope="module")
def profiled(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    changes = {"trainer__max_epochs": 2, "checkpoint__every_n_steps": 1, "checkpoint__keep_last": 100}
    overrides = toy_overrides(**changes, trainer__profile_steps="[3,5]")
    return train(new_run(overrides, tmp_path_factory.mktemp("profiled")))


def test_a_trace_has_the_steps_asked_for(profiled: RunDirectory) -> None:
    assert [path.name for path in (profiled.path / "traces").iterdir()] == ["attempt-00-steps-3-5.json.gz"]
    assert steps(profiled, "attempt-00-steps-3-5.json.gz") == 3


def test_a_trace_changes_no_weight(profiled: RunDirectory, trained: RunDirectory) -> None:
    assert changed(weights(profiled, 17), weights(trained, 17)) == set()


def test_an_attempt_that_begins_within_the_steps_traces_the_rest(profiled: RunDirectory, tmp_path: Path) -> None:
    run = train(as_killed_after(profiled, tmp_path, step=3), attempt=1)
    assert steps(run, "attempt-01-steps-4-5.json.gz") == 2


def test_a_trace_that_cannot_be_written_stops_nothing(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run(toy_overrides(trainer__max_steps=3, trainer__profile_steps="[2,2]"), tmp_path)
    (run.path / "traces").write_text("")
    with caplog.at_level(logging.WARNING, logger="effnet"):
        train(run)
    assert "the trace of steps 2 to 2 was not written" in caplog.text
    assert (run.checkpoints / "step-000000003").exists()
