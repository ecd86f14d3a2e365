"""Checkpoints that are asked for from outside of training."""

import time
from collections.abc import Callable
from pathlib import Path

from configs.run import RunDirectory
from tests.integration.runs import TIMEOUT_S, final_state, last_step, logs, start, train
from tests.integration.test_equivalence import assert_same

Overrides = Callable[..., list[str]]


def test_a_file_named_stop_ends_a_run_with_a_checkpoint_and_only_once(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__max_epochs=30, trainer__max_steps=120)
    run = RunDirectory(tmp_path / "run")
    process = start(overrides, runs_dir=tmp_path, run_id="run")
    while last_step(run) < 3:
        assert process.poll() is None, logs(run)
        time.sleep(0.01)
    (run.path / "STOP").touch()
    output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode == 85, output + logs(run)
    assert 3 <= final_state(run)["global_step"] < 120
    train(overrides, runs_dir=tmp_path, run_id="run")
    whole = train(overrides, runs_dir=tmp_path, run_id="whole")
    assert_same(final_state(whole), final_state(run))
