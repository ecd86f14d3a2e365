"""Which rank a task is, and what its parent says when it dies."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from configs.exit_codes import EXIT_INTERRUPTED
from configs.files import write_atomically
from configs.rank_records import rank_error, rank_errors
from configs.run import RunDirectory
from launch.rank import attempt_number, rank_variables

TIMEOUT_S = 60
# Stands for the trainer: takes signals late, as the real one does after its imports, and notes what it was given.
TRAINER = """
import os, pathlib, signal, sys, time
run, attempt, log_dir = sys.argv[2:]
folder = pathlib.Path(log_dir.partition("=")[2])
(folder / "starting").touch()
time.sleep(0.5)
got = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, _: got.append(number))
signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGUSR1))
(folder / "variables").write_text(" ".join(os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
(folder / "pid").write_text(str(os.getpid()))
while not got:
    time.sleep(0.01)
sys.exit(85)
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run, and beside it a package `trainer` that is first on the path."""
    (tmp_path / "code/trainer").mkdir(parents=True)
    (tmp_path / "code/trainer/__init__.py").touch()
    (tmp_path / "code/trainer/__main__.py").write_text(TRAINER)
    return RunDirectory(tmp_path / "run")


def start(run: RunDirectory, **environment: str) -> "subprocess.Popen[bytes]":
    code = f"{run.path.parent / 'code'}:{Path(__file__).parents[3]}"
    variables = {**os.environ, "PYTHONPATH": code, "PYTHONSAFEPATH": "1", **environment}
    return subprocess.Popen([sys.executable, "-m", "launch.rank", str(run.path)], env=variables)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists() or (path.name == "pid" and not path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.01)


def test_slurms_variables_become_torchruns() -> None:
    environment = {
        "SLURM_PROCID": "5",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "2",
        "SLURM_STEP_NUM_TASKS": "8",
        "SLURM_STEP_NUM_NODES": "4",
        "SLURM_NTASKS": "9",
    }

    expected = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "2", "GROUP_RANK": "2"}
    assert rank_variables(environment) == expected
    with pytest.raises(ValueError, match="7 tasks on 4 nodes"):
        rank_variables({**environment, "SLURM_STEP_NUM_TASKS": "7"})


def test_torchruns_variables_count_before_slurms() -> None:
    own = {"RANK": "3", "LOCAL_RANK": "1", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "2"}

    assert rank_variables({**own, "SLURM_PROCID": "1"}) == own


@pytest.mark.parametrize(
    ("environment", "attempt"),
    [
        ({}, 3),
        ({"SLURM_RESTART_COUNT": "2"}, 5),
        ({"JOB_RESTART_ATTEMPT": "1"}, 4),
        ({"EFFNET_ATTEMPT": "7", "SLURM_RESTART_COUNT": "2"}, 7),
    ],
)
def test_the_attempt_is_what_the_script_says_or_the_engine_counts(environment: dict[str, str], attempt: int) -> None:
    assert attempt_number(environment, first=3) == attempt


def test_a_signal_that_comes_while_the_trainer_starts_waits_for_it(run: RunDirectory) -> None:
    process = start(run, EFFNET_ATTEMPT="2", RANK="1", LOCAL_RANK="0", WORLD_SIZE="4", LOCAL_WORLD_SIZE="1")
    wait_for(run.log_dir(2) / "starting")
    process.send_signal(signal.SIGTERM)

    assert process.wait(timeout=TIMEOUT_S) == EXIT_INTERRUPTED
    assert (run.log_dir(2) / "variables").read_text() == "1 4 0"


def test_a_trainer_that_is_killed_is_named(run: RunDirectory) -> None:
    process = start(run, SLURM_PROCID="3", SLURM_LOCALID="1", SLURM_NODEID="1",
                    SLURM_STEP_NUM_TASKS="4", SLURM_STEP_NUM_NODES="2")  # fmt: skip
    wait_for(run.log_dir(0) / "pid")
    os.kill(int((run.log_dir(0) / "pid").read_text()), signal.SIGKILL)

    assert process.wait(timeout=TIMEOUT_S) == 128 + signal.SIGKILL
    (error,) = rank_errors(run.log_dir(0))
    assert (error["rank"], error["exit_code"], error["reason"]) == (3, 137, "killed by SIGKILL")


def test_what_a_rank_left_of_an_earlier_round_is_gone_but_an_end_for_good_stays(run: RunDirectory) -> None:
    log_dir = run.log_dir(0)
    log_dir.mkdir(parents=True)
    write_atomically(rank_error(log_dir, 1), '{"time": 1, "exit_code": 85}')

    process = start(run, TORCHELASTIC_RESTART_COUNT="1")
    assert process.wait(timeout=TIMEOUT_S) == EXIT_INTERRUPTED
    assert not (log_dir / "pid").exists()

    rank_error(log_dir, 1).unlink()
    write_atomically(rank_error(log_dir, 0), '{"time": 1, "exit_code": 1}')
    process = start(run, TORCHELASTIC_RESTART_COUNT="1")
    wait_for(log_dir / "pid")
    assert not rank_error(log_dir, 0).exists()
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=TIMEOUT_S) == EXIT_INTERRUPTED
