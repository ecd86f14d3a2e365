"""How a job's script begins and ends attempts, and when it goes back into the queue."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from configs.files import write_atomically
from configs.rank_records import rank_error, record_rank_error
from configs.run import RunDirectory
from launch.attempt import LOST, again, begin, end
from launch.ledger import request_cancellation, withdraw_cancellation

LIMITS = ("--requeues=0", "--max-requeues=1", "--max-failures=1")


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "mine")
    run.launch_dir.mkdir(parents=True)
    return run


def script(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "launch.attempt", *arguments], capture_output=True, text=True)


def rank_ended(run: RunDirectory, attempt: int, code: int, reason: str) -> None:
    record = {"time": 1.0, "rank": 1, "host": "node2", "exit_code": code, "reason": reason}
    write_atomically(rank_error(run.log_dir(attempt), 1), json.dumps(record))


def test_an_attempt_begins_with_its_number_and_a_free_port(run: RunDirectory) -> None:
    number, port = script("begin", str(run.path)).stdout.split()

    assert number == "0"
    assert run.log_dir(0).is_dir()
    with socket.socket() as listener:
        listener.bind(("", int(port)))
    assert script("begin", str(run.path)).stdout.split()[0] == "1"


@pytest.mark.parametrize(
    ("status", "code", "word", "next_step"),
    [
        ("0", None, "done", "end"),
        ("1", 85, "interrupted", "requeue"),
        ("1", 93, "do_not_retry", "end"),
        ("1", 1, "retry", "requeue"),
        ("1", None, "retry", "requeue"),
    ],
)
def test_an_attempt_ends_with_the_exit_code_of_the_first_rank(
    status: str, code: int | None, word: str, next_step: str, run: RunDirectory
) -> None:
    begin(run)
    if code is not None:
        rank_ended(run, 0, code, "for a reason")

    done = script("end", str(run.path), "--attempt=0", f"--status={status}", *LIMITS)

    assert done.returncode == (code if code is not None else int(status))
    assert done.stdout == f"{next_step}\n"
    (outcome,) = run.outcomes()
    assert (outcome["exit_class"], outcome["started"] < outcome["ended"]) == (word, True)
    if code is not None:
        assert f"attempt 0: {word} on rank 1 (node2): for a reason" in done.stderr


def test_requeues_and_failures_in_a_row_are_bounded() -> None:
    def goes_on(*attempts: tuple[int, str], requeues: int = 0) -> bool:
        outcomes = [{"exit_code": code, "checkpoint": checkpoint} for code, checkpoint in attempts]
        return again(outcomes, requeues=requeues, max_requeues=5, max_failures=2)

    assert goes_on((85, "a"), requeues=4)
    assert not goes_on((85, "a"), requeues=5)
    assert goes_on((1, "a"), (1, "a"))
    assert not goes_on((1, "a"), (1, "a"), (1, "a"))
    assert goes_on((1, "a"), (1, "a"), (1, "b")), "a new checkpoint is progress"
    assert goes_on((1, "a"), (85, "a"), (1, "a"), (1, "a"))
    assert not goes_on((0, "a"))
    assert not goes_on((93, "a"))


def test_a_cancelled_run_is_neither_requeued_nor_begun(run: RunDirectory) -> None:
    begin(run)
    rank_ended(run, 0, 85, "SIGUSR1")
    request_cancellation(run)

    assert script("end", str(run.path), "--attempt=0", "--status=1", *LIMITS).stdout == "end\n"
    refused = script("begin", str(run.path))
    assert (refused.returncode, refused.stdout, run.attempts) == (85, "", 1)
    withdraw_cancellation(run)
    assert script("begin", str(run.path)).returncode == 0


def test_attempts_whose_script_was_killed_get_an_outcome(run: RunDirectory) -> None:
    for _ in range(2):
        begin(run)
    rank_ended(run, 1, 85, "SIGTERM at step 7: checkpointed")

    begin(run)

    first, second = run.outcomes()
    assert (first["exit_class"], first["reason"], first["rank"]) == ("retry", LOST, None)
    assert (second["exit_class"], second["rank"]) == ("interrupted", 1)


def failed_again(run: RunDirectory, reason: str, error: str = "ValueError", code: int = 1) -> str:
    """One more attempt, of which a rank leaves that; how it ended."""
    attempt, _ = begin(run)
    record_rank_error(run.log_dir(attempt), 1, code=code, reason=reason, error=error)
    return str(end(run, attempt=attempt, status=1)["exit_class"])


def test_an_attempt_that_fails_as_the_one_before_it_is_not_to_be_tried_again(run: RunDirectory) -> None:
    assert failed_again(run, "12 of 13") == "retry"
    assert failed_again(run, "something else") == "retry"
    assert failed_again(run, "12 of 14") == "retry"
    assert failed_again(run, "SIGTERM", "Interrupted", code=85) == "interrupted"
    assert failed_again(run, "12 of 15") == "retry"
    assert failed_again(run, "12 of 16") == "do_not_retry"
    assert run.outcomes()[-1]["reason"] == "12 of 16 (attempt 4 failed at the same step in the same way)"


def test_a_disk_or_a_server_that_takes_no_checkpoint_may_do_so_again(run: RunDirectory) -> None:
    assert [failed_again(run, "No space left on device", "SaveFailedError") for _ in range(2)] == ["retry"] * 2


def test_an_attempt_whose_script_was_killed_is_judged_too(run: RunDirectory) -> None:
    failed_again(run, "12 of 13")
    attempt, _ = begin(run)
    record_rank_error(run.log_dir(attempt), 1, code=1, reason="12 of 14", error="ValueError")

    assert script("begin", str(run.path)).returncode == 0
    assert run.outcomes()[attempt]["exit_class"] == "do_not_retry"
