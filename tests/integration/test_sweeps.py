"""Sweeps: W&B's real client on a loopback server, and search without one; trials are ordinary runs of two processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from configs.run import RunDirectory
from tests.clusters.slurm import wait_for
from tests.integration.runs import TIMEOUT_S, last_step, logs, rows
from tests.wandb_server import WandbServer

Overrides = Callable[..., list[str]]
EFFNET = [sys.executable, "-m", "launch.cli"]


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
        assert server.unknown == []


def sweep_file(folder: Path, **parameters: list[Any]) -> Path:
    document = {"method": "grid", "metric": {"name": "val/top1", "goal": "maximize"}}
    specs = {key.replace("__", "."): {"values": values} for key, values in parameters.items()}
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump({**document, "parameters": specs}))
    return file


def start(*words: object, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
    command = [*EFFNET, "sweep", *map(str, words)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def ended(process: "subprocess.Popen[str]", expected: int = 0) -> str:
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == expected, output
    return output


def trial(folder: Path, name: str) -> RunDirectory:
    return RunDirectory(folder / name)


def test_trials_of_two_processes_are_one_wandb_run_each_though_the_agent_is_killed(
    toy_overrides: Overrides, tmp_path: Path, server: WandbServer
) -> None:
    """The first trial's agent is killed by `kill -9`; another one, started by the id, goes on with it."""
    file = sweep_file(tmp_path, optimizer__lr=[0.01, 0.02])
    overrides = [*toy_overrides(trainer__devices=2, tracking__mode="online"), f"runs_dir={tmp_path}"]
    overrides = [text for text in overrides if not text.startswith("optimizer.lr")]
    overrides += ["checkpoint.every_n_steps=2", "tracking.project=toys"]
    first = trial(tmp_path, "sweep000-trial000")
    agent = start("--sweep", file, *overrides, environment=server.environment())
    wait_for(lambda: first.latest_checkpoint() is not None or agent.poll() is not None, what="a checkpoint")
    assert agent.poll() is None, (agent.communicate()[0], logs(first))
    children = psutil.Process(agent.pid).children(recursive=True)
    agent.kill()
    agent.communicate()
    psutil.wait_procs(children, timeout=30)
    step = last_step(first)
    assert 0 < step < 24

    output = ended(start("--id", "team/toys/sweep000", "--runs-dir", tmp_path, environment=server.environment()))

    assert "sweep000-trial000: goes on" in output
    assert server.sweeps["sweep000"].handed == ["trial000", "trial001"]
    assert set(server.runs) == {"trial000", "trial001"}
    for name, lr in (("trial000", 0.01), ("trial001", 0.02)):
        directory, run = trial(tmp_path, f"sweep000-{name}"), server.runs[name]
        assert directory.outcomes()[-1]["exit_code"] == 0, logs(directory)
        assert directory.load_config().optimizer.lr == lr
        assert directory.wandb_id() == name
        assert (run.sweep, run.project, run.exit_code) == ("sweep000", "toys", 0)
        assert run.config["optimizer.lr"]["value"] == run.config["optimizer"]["value"]["lr"] == lr
        assert max(row["trainer/global_step"] for row in run.history) == last_step(directory)
    # One session an attempt, though two processes train.
    assert [server.runs[name].sessions for name in ("trial000", "trial001")] == [2, 1]
    assert {row["attempt"] for row in rows(first)} == {"0", "1"}


def test_a_trial_that_wandb_stops_checkpoints_and_is_not_gone_on_with(
    toy_overrides: Overrides, tmp_path: Path, server: WandbServer
) -> None:
    file = sweep_file(tmp_path, seed=[1])
    overrides = [*toy_overrides(tracking__mode="online", trainer__max_epochs=500), f"runs_dir={tmp_path}"]
    agent = start("--sweep", file, *overrides, environment=server.environment())
    run = trial(tmp_path, "sweep000-trial000")
    wait_for(lambda: last_step(run) >= 3 or agent.poll() is not None, what="steps")

    server.stop.add("trial000")

    assert "stopped by W&B" in ended(agent)
    assert run.outcomes()[-1]["exit_code"] == 85
    assert run.latest_checkpoint() is not None
    again = start("--id", "team/effnet/sweep000", "--runs-dir", tmp_path, environment=server.environment())
    assert "goes on" not in ended(again)
    assert run.attempts == 1


def test_a_grid_without_a_server_survives_a_signal_and_failing_trials(toy_overrides: Overrides, tmp_path: Path) -> None:
    """Trials: one that is interrupted and goes on, one whose numbers go wrong, one that is well."""
    file = sweep_file(tmp_path, optimizer__lr=[0.02, 1e30, 0.01])
    overrides = [text for text in toy_overrides(trainer__max_epochs=2) if not text.startswith("optimizer.lr")]
    overrides += [f"runs_dir={tmp_path}", "fault.max_skipped_steps=0", "fault.max_rollbacks=0"]
    agent = start("--sweep", file, *overrides)
    wait_for(lambda: any(last_step(run) for run in runs(tmp_path)) or agent.poll() is not None, what="a step")
    agent.send_signal(signal.SIGTERM)
    output = ended(agent, expected=85)
    (first,) = runs(tmp_path)
    assert f"effnet sweep --id {first.run_id.rpartition('-')[0]}" in output

    output = ended(start("--sweep", file, *overrides, "--quiet"))

    assert "goes on" in output
    assert "validation" in output
    assert "epoch" not in output
    assert [run.load_config().optimizer.lr for run in runs(tmp_path)] == [0.02, 1e30, 0.01]
    assert [[past["exit_code"] for past in run.outcomes()] for run in runs(tmp_path)] == [[85, 0], [93], [0]]


def test_an_agent_ends_after_failures_in_a_row(toy_overrides: Overrides, tmp_path: Path) -> None:
    file = sweep_file(tmp_path, seed=[1, 2, 3])
    overrides = [*toy_overrides(optimizer__lr=1e30), f"runs_dir={tmp_path}"]
    overrides += ["fault.max_skipped_steps=0", "fault.max_rollbacks=0"]

    output = ended(start("--sweep", file, *overrides, "--max-failures", 2), expected=93)

    assert "2 trials in a row have failed" in output
    assert len(runs(tmp_path)) == 2


def runs(folder: Path) -> list[RunDirectory]:
    return [RunDirectory(file.parent) for file in sorted(folder.glob("*/trial.json"))]


def test_wandb_that_is_away_is_one_message(toy_overrides: Overrides, tmp_path: Path) -> None:
    environment = {**os.environ, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "0" * 40}
    environment["WANDB_HTTP_TIMEOUT"] = "2"
    file = sweep_file(tmp_path, seed=[1])
    words = [*toy_overrides(tracking__mode="online"), f"runs_dir={tmp_path}"]

    output = ended(start("--sweep", file, *words, environment=environment), expected=93)

    assert "tracking.mode=offline" in output
    assert "Traceback" not in output
    assert not list(tmp_path.glob("sweep-*"))
