"""How the ranks of a run that was told to stop end: none before all are ready."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.rank_records import rank_errors
from configs.run import RunDirectory
from tests.integration.runs import logs, signal_after

Overrides = Callable[..., list[str]]


@pytest.mark.slow
def test_no_rank_ends_before_rank_0_has_finished_with_wandb(toy_overrides: Overrides, tmp_path: Path) -> None:
    """As soon as one has ended, torchrun's agent ends the others: here it gives them a second."""
    run, finished, spec = RunDirectory(tmp_path / "run"), tmp_path / "finished", tmp_path / "spec.json"
    spec.write_text(json.dumps({"seconds": 4, "finished": str(finished)}))
    overrides = toy_overrides(trainer__devices=2, trainer__max_epochs=300, tracking__mode="offline")
    command = [sys.executable, "-m", "tests.slow_tracking", str(spec), "fit", *overrides]
    command += [f"runs_dir={tmp_path}", "run_id=run"]
    environment = os.environ | {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)

    output = signal_after(process, run, step=3)

    assert process.returncode == 85, output + logs(run)
    assert finished.exists(), logs(run)
    assert [(error["error"], error.get("signal")) for error in rank_errors(run.log_dir(0))] == [
        ("Interrupted", None)
    ] * 2
