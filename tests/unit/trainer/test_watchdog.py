"""The watchdog in real processes that hang in every way."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from configs.rank_records import StepFile, rank_error

PROGRAM = """
import ctypes, sys, time
from pathlib import Path
from tests.faults import looping_on_purpose, waiting_in_c_on_purpose
from trainer import watchdog

watchdog.GRACE_S = watchdog.POLL_S = 0.5
dog = watchdog.Watchdog(Path(sys.argv[1]), 3, timeout_s=2.0)
dog.start()
dog.begin()
for _ in range(30):
    time.sleep(0.1)
    dog.alive()
print("alive after 3 s", flush=True)
"""


def run(folder: Path, end: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", PROGRAM + end, str(folder)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("end", "function"),
    [
        ("looping_on_purpose()", "looping_on_purpose"),
        ("waiting_in_c_on_purpose(ctypes.CDLL(None))", "waiting_in_c_on_purpose"),
    ],
    ids=["in Python", "in C"],
)
def test_a_rank_that_hangs_shows_its_stacks_and_ends_with_word_of_why(end: str, function: str, tmp_path: Path) -> None:
    StepFile(tmp_path, 3).write(41)
    done = run(tmp_path, end)

    assert (done.returncode, done.stdout) == (1, "alive after 3 s\n"), done.stderr
    assert f"in {function}" in done.stderr
    word = json.loads(rank_error(tmp_path, 3).read_text())
    assert (word["rank"], word["step"], word["exit_code"], word["error"]) == (3, 41, 1, "Hang")
    assert word["reason"].startswith("no progress in 2 s (fault.hang_timeout_s); the stacks of its threads are in ")


def test_a_rank_that_hangs_with_the_interpreters_lock_shows_its_stacks_and_ends(tmp_path: Path) -> None:
    done = run(tmp_path, "waiting_in_c_on_purpose(ctypes.PyDLL(None))")

    assert (done.returncode, done.stdout) == (1, "alive after 3 s\n"), done.stderr
    assert "in waiting_in_c_on_purpose" in done.stderr


def test_a_watchdog_that_was_stopped_ends_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, "dog.stop(); time.sleep(5)")

    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())


def test_the_first_micro_batch_has_time_of_its_own(tmp_path: Path) -> None:
    late = "dog.stop(); other = watchdog.Watchdog(Path(sys.argv[1]), 3, timeout_s=0.1); other.start(); time.sleep(3)"
    done = run(tmp_path, late)

    assert done.returncode == 0, done.stderr
    assert run(tmp_path, late.replace("time.sleep(3)", "other.begin(); time.sleep(60)")).returncode == 1
