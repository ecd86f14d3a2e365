"""Checkpoints of earlier formats still go on."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.rank_records import rank_log
from configs.run import RunDirectory
from tests.integration.runs import TIMEOUT_S, final_state, losses

ROOT = Path(__file__).parents[2]
FIXTURE = ROOT / "tests" / "fixtures" / "checkpoint-format-1"


def test_a_run_of_format_1_goes_on_to_its_end(tmp_path: Path) -> None:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    run = RunDirectory(tmp_path / "run")
    expected = losses(run)  # of the code that wrote the checkpoint of step 3, and then went on
    command = [sys.executable, "-m", "launch.cli", "fit", "--run", str(run.path)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed at step 3" in rank_log(run.log_dir(0), 0).read_text()
    assert final_state(run)["global_step"] == 8
    assert losses(run) == pytest.approx(expected, rel=1e-3)
