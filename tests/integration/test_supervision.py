"""Ranks and launchers that fail, in real processes: who ends, how soon, and what is left to read."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.rank_records import HANG, PEER_LOST, rank_error, rank_errors, rank_log
from configs.run import RunDirectory
from launch.fit import LOST
from tests.integration import runs
from tests.integration.runs import TIMEOUT_S, final_state, last_step, logs, train
from tests.integration.test_equivalence import assert_same

Overrides = Callable[..., list[str]]
SOON_S = 15
"""Far less than any timeout of torch's, and slack for a busy machine."""


def start(overrides: list[str], *options: str, runs_dir: Path, **fault: Any) -> "subprocess.Popen[str]":
    """`effnet fit` of run `faulty`, with a fault from tests/faults.py."""
    spec = runs_dir / "fault.json"
    spec.write_text(json.dumps({"ranks": [1], "steps": 3, "attempts": [0], **fault}))
    command = [sys.executable, "-m", "tests.faults", str(spec), "fit", *options, *overrides]
    command += [f"runs_dir={runs_dir}", "run_id=faulty"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


RESTARTS = ("--max-restarts=3", "fault.restart_backoff_s=0.5", "checkpoint.every_n_steps=1")


def wait_for(condition: Callable[[], bool], *, timeout_s: float = TIMEOUT_S) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    return [each for each in processes if each.is_running() and each.status() != psutil.STATUS_ZOMBIE]


def test_a_launcher_that_is_killed_leaves_no_process_and_the_run_goes_on(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    for devices in (1, 2):
        runs_dir = tmp_path / str(devices)
        runs_dir.mkdir()
        run = RunDirectory(runs_dir / "faulty")
        overrides = toy_overrides(
            trainer__devices=devices, trainer__max_steps=8, data__num_workers=1, checkpoint__every_n_steps=1
        )
        launcher = start(overrides, runs_dir=runs_dir, kind="slow", ranks=[0, 1])
        assert wait_for(lambda run=run, launcher=launcher: last_step(run) >= 3 or launcher.poll() is not None)
        assert launcher.poll() is None, (launcher.communicate()[0], logs(run))
        started = psutil.Process(launcher.pid).children(recursive=True)
        # The agent and its ranks with a loader's worker each; or the one rank with its own.
        assert len(started) >= {1: 2, 2: 5}[devices]

        launcher.kill()

        assert wait_for(lambda started=started: not alive(started), timeout_s=SOON_S), alive(started)
        train(overrides, runs_dir=runs_dir, run_id="faulty")
        assert "resumed at step" in run.log_dir(1).joinpath("rank_00000.log").read_text()
        assert last_step(run) == 8


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("error", "RuntimeError: broken on purpose at 0x"),
        ("memory", "MemoryError: Unable to allocate"),
        ("kill", "killed by SIGKILL"),
    ],
)
def test_a_rank_that_dies_ends_the_others_and_is_named(
    kind: str, reason: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "faulty")
    launcher = start(toy_overrides(trainer__devices=2, fault__timeout_s=120), runs_dir=tmp_path, kind=kind)

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 1, output + logs(run)
    (outcome,) = run.outcomes()
    found = (outcome["exit_class"], outcome["rank"], outcome["host"], outcome["step"])
    assert found == ("retry", 1, os.uname().nodename, 3), outcome
    assert outcome["reason"].startswith(reason)
    last = output.strip().splitlines()[-1]
    assert last.startswith(f"error: rank 1 ({os.uname().nodename}), step 3: {reason}")
    # Rank 0 was not killed: it heard of it by itself, and that is not taken for the cause.
    survivor = json.loads(rank_error(run.log_dir(0), 0).read_text())
    assert (survivor["error"], survivor["step"]) == (PEER_LOST, 3)


def test_when_no_step_comes_every_rank_shows_where_it_is_and_starts_again(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    """Rank 1 loops in Python, and rank 0 waits in C++ for it."""
    run = RunDirectory(tmp_path / "faulty")
    # The collective's own timeout comes later.
    overrides = toy_overrides(trainer__devices=2, trainer__max_steps=6, fault__timeout_s=39, fault__hang_timeout_s=20)
    launcher = start(overrides, *RESTARTS, runs_dir=tmp_path, kind="loop")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 0, output + logs(run)
    outcome, after = run.outcomes()
    found = (outcome["exit_class"], outcome["error"], outcome["step"])
    assert found == ("retry", HANG, 3), outcome
    assert "no progress in 20 s (fault.hang_timeout_s)" in outcome["reason"]
    assert (after["exit_class"], last_step(run)) == ("done", 6)
    assert "in looping_on_purpose" in rank_log(run.log_dir(0), 1).read_text()
    assert "torch/autograd" in rank_log(run.log_dir(0), 0).read_text()


def test_a_rank_that_does_not_end_when_another_has_failed_shows_where_it_is(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    """Rank 0 gives up on its peer before the watchdog would; rank 1 is deaf in C."""
    run = RunDirectory(tmp_path / "faulty")
    launcher = start(toy_overrides(trainer__devices=2, fault__timeout_s=20), runs_dir=tmp_path, kind="wait")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 1, output + logs(run)
    (outcome,) = run.outcomes()
    assert (outcome["rank"], outcome["error"], outcome["step"]) == (1, HANG, 3), outcome
    assert "did not end within 15 s of another rank's failure" in outcome["reason"]
    assert "in waiting_in_c_on_purpose" in rank_log(run.log_dir(0), 1).read_text()
    assert json.loads(rank_error(run.log_dir(0), 0).read_text())["error"] == PEER_LOST


def test_at_the_time_limit_all_ranks_checkpoint_and_end(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "toy")
    overrides = toy_overrides(trainer__devices=2, trainer__max_epochs=3000, fault__max_time_minutes=0.5)
    launcher = runs.start(overrides, runs_dir=tmp_path, run_id="toy")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 85, output + logs(run)
    (outcome,) = run.outcomes()
    step = last_step(run)
    assert outcome["exit_class"] == "interrupted"
    assert outcome["reason"] == f"time is up (fault.max_time_minutes) at step {step}: checkpointed"
    assert run.latest_checkpoint() == f"step-{step:09d}"
    assert "time is up" in output
    assert {error["step"] for error in rank_errors(run.log_dir(0))} == {step}


def test_a_rank_that_is_killed_is_restarted_in_place_and_the_weights_are_the_same(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(trainer__devices=2, trainer__max_steps=6, checkpoint__every_n_steps=1)
    whole = train(overrides, runs_dir=tmp_path, run_id="whole")
    # "never" is for the first attempt.
    launcher = start([*overrides, "resume=never"], *RESTARTS, runs_dir=tmp_path, kind="kill", attempts=[0, 1])
    run = RunDirectory(tmp_path / "faulty")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 0, output + logs(run)
    outcomes = [(outcome["exit_class"], outcome["rank"], outcome["step"]) for outcome in run.outcomes()]
    # Killed twice at the same step: no error of the run's, so it may go on.
    assert outcomes == [("retry", 1, 3), ("retry", 1, 3), ("done", None, None)]
    assert "step 3: killed by SIGKILL; again from step-00000000" in output
    assert "(restart 1 of 3 without a new checkpoint)" in output
    assert_same(final_state(whole), final_state(run))


def test_the_same_error_at_the_same_step_is_not_tried_a_third_time(toy_overrides: Overrides, tmp_path: Path) -> None:
    launcher = start(toy_overrides(), *RESTARTS, runs_dir=tmp_path, kind="error", ranks=[0], attempts=[0, 1, 2, 3])
    run = RunDirectory(tmp_path / "faulty")

    output, _ = launcher.communicate(timeout=TIMEOUT_S)

    assert launcher.returncode == 93, output + logs(run)
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["retry", "do_not_retry"]
    last = output.strip().splitlines()[-1]
    assert "step 3: RuntimeError: broken on purpose at 0x" in last
    assert "(attempt 0 failed at the same step in the same way)" in last


def test_a_signal_ends_the_wait_for_a_restart_and_one_that_was_heeded_none_follows(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = [*toy_overrides(trainer__max_epochs=300), "fault.restart_backoff_s=300"]
    run = RunDirectory(tmp_path / "faulty")
    launcher = start(overrides, "--max-restarts=3", runs_dir=tmp_path, kind="error", ranks=[0])
    assert wait_for(lambda: bool(run.outcomes()) or launcher.poll() is not None)
    launcher.send_signal(signal.SIGTERM)
    output, _ = launcher.communicate(timeout=TIMEOUT_S)
    assert launcher.returncode == 85, output
    assert "stopped while waiting to start again" in output

    launcher = start(overrides, "--max-restarts=3", runs_dir=tmp_path, kind="error", attempts=[])
    output = runs.signal_after(launcher, run, step=6)
    assert launcher.returncode == 85, output
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["retry", "interrupted"]


def test_a_run_that_is_made_longer_and_killed_is_not_done(toy_overrides: Overrides, tmp_path: Path) -> None:
    """Its last outcome is that of the attempt before, and nothing has changed since its newest checkpoint."""
    run, overrides = RunDirectory(tmp_path / "faulty"), toy_overrides(checkpoint__every_n_steps=1)
    train([*overrides, "trainer.max_steps=1", "resume=never"], runs_dir=tmp_path, run_id="faulty")
    longer = [*overrides, "trainer.max_steps=5"]
    launcher = start(longer, runs_dir=tmp_path, kind="slow", ranks=[0], attempts=[1])
    assert wait_for(lambda: last_step(run) >= 3 or launcher.poll() is not None)
    assert launcher.poll() is None, (launcher.communicate()[0], logs(run))
    launcher.kill()
    launcher.communicate()

    train(longer, runs_dir=tmp_path, run_id="faulty")
    assert last_step(run) == 5
    outcomes = [(each["attempt"], each["exit_class"], each["reason"]) for each in run.outcomes()]
    assert outcomes == [(0, "done", "done"), (1, "retry", LOST), (2, "done", "done")]
