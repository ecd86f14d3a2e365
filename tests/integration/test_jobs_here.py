"""A run on this machine by `effnet launch local`: watched, followed and ended by the same verbs as a cluster's."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from configs.run import RunDirectory
from tests.clusters.slurm import effnet, wait_for
from tests.integration.runs import TIMEOUT_S, last_step, logs

EFFNET = [sys.executable, "-m", "launch.cli"]


def test_a_local_run_is_watched_followed_and_cancelled(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__devices=2, trainer__max_epochs=300)
    command = [*EFFNET, "launch", "local", *overrides, f"runs_dir={tmp_path}", "run_id=here"]
    run = RunDirectory(tmp_path / "here")
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: last_step(run) >= 3 or launcher.poll() is not None, what="steps")
    assert launcher.poll() is None, (launcher.communicate()[0], logs(run))
    follower = subprocess.Popen([*EFFNET, "logs", str(run.path), "--follow"], stdout=subprocess.PIPE, text=True)

    assert f"running (process {launcher.pid} on {os.uname().nodename})" in " ".join(effnet("runs", "--runs-dir",
        str(tmp_path)).split())  # fmt: skip
    assert "told to checkpoint" in effnet("cancel", str(run.path))
    output, _ = launcher.communicate(timeout=TIMEOUT_S)
    followed, _ = follower.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 85, output
    assert run.outcomes()[-1]["exit_class"] == "interrupted"
    (code,) = run.launch_dir.glob("code-*")
    assert json.loads(run.environment_file.read_text())[0]["code"] == str(code)
    lines = followed.splitlines()
    assert {line[0] for line in lines} == {"0", "1"}
    assert any("epoch 1/300" in line for line in lines)
    status = effnet("status", str(run.path))
    assert "interrupted" in status
    assert str(run.latest_checkpoint()) in status


def test_a_run_is_ended_at_once(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    command = [*EFFNET, "fit", *toy_overrides(trainer__max_epochs=300), f"runs_dir={tmp_path}", "run_id=here"]
    run = RunDirectory(tmp_path / "here")
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_for(lambda: run.attempts == 1, what="the attempt")

    effnet("cancel", str(run.path), "--now")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode not in (0, 85), output
    assert run.latest_checkpoint() is None
