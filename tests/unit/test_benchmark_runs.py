"""What benchmarks start cannot fail in silence: their children's words and ends are theirs."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from benchmarks.runs import finished, running, seconds_to_step, settings
from configs.run import RunDirectory

ROW = """
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
file.parent.mkdir(parents=True)
for text in ("", "epoch,st", "epoch,step\\n", "epoch,step\\n0,1", "epoch,step\\n0,1\\n"):
    file.write_text(text)
    time.sleep(0.05)
"""


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "mine")


@pytest.mark.parametrize(
    ("end", "told"),
    [("sys.exit(3)", "ended with 3"), ("os.kill(os.getpid(), 9)", "was killed by SIGKILL"), ("os._exit(1)", "with 1")],
)
def test_a_child_that_fails_is_told_of_with_its_words_on_both_streams(end: str, told: str, run: RunDirectory) -> None:
    program = f"import os, sys\nprint('out', flush=True)\nprint('why', file=sys.stderr, flush=True)\n{end}"
    with pytest.raises(RuntimeError, match=rf"{told}:\nout\nwhy\n"), running(python(program)):
        pass
    with pytest.raises(RuntimeError, match=rf"{told}:\nout\nwhy\n"):
        seconds_to_step(python(program), run, step=1)


def test_a_child_without_a_word_is_told_of_too() -> None:
    with pytest.raises(RuntimeError, match=r"ended with 1:\n\(it printed nothing\)"), running(["false"]):
        pass


def test_a_run_that_is_refused_is_told_of_as_its_user_would_be(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 93:.*data\.num_lanes.*received  3"):
        finished(run, settings(run.path, data__num_lanes=3))


def test_a_failure_after_the_step_that_is_timed_is_one(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError, match=r"(?s)ended with 1:.*ZeroDivisionError"):
        seconds_to_step(python(ROW + "1 / 0", run.metrics_file), run, step=1)


def test_a_step_is_seen_whatever_of_its_file_is_there_and_however_much_is_printed(run: RunDirectory) -> None:
    talk = "print('x' * 10**6, file=sys.stderr)\n"
    assert seconds_to_step(python(ROW.replace("for text", talk + "for text"), run.metrics_file), run, step=1) > 0
    assert not run.path.exists()


def test_a_step_that_does_not_come_is_a_failure(run: RunDirectory) -> None:
    with pytest.raises(RuntimeError, match="step 2 was not seen"):
        seconds_to_step(python(ROW, run.metrics_file), run, step=2)


def test_no_child_is_left_behind_by_an_error() -> None:
    children = []

    def fail() -> None:
        with running(["sleep", "600"]) as process:
            children.append(psutil.Process(process.pid))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [child.is_running() for child in children] == [False]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_end_by_a_signal_is_said_and_takes_the_child_along(number: signal.Signals) -> None:
    program = """
import sys
from benchmarks.measure import say_when_ended
from benchmarks.runs import running
say_when_ended()
with running(["sleep", "600"]) as process:
    print(process.pid, flush=True)
    process.wait()
"""
    with subprocess.Popen(python(program), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as benchmark:
        assert benchmark.stdout is not None
        child = psutil.Process(int(benchmark.stdout.readline()))
        benchmark.send_signal(number)
        _, told = benchmark.communicate(timeout=60)
    assert (benchmark.returncode, told) == (128 + number, f"ended by {number.name}\n")
    deadline = time.monotonic() + 60
    while child.is_running() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not child.is_running()


@pytest.mark.slow  # two processes that import torch and timm
def test_the_error_of_a_rank_that_fails_is_the_benchmarks(tmp_path: Path) -> None:
    from benchmarks.checkpoint import seconds_a_step

    (tmp_path / "file").touch()  # where there should be a folder
    with pytest.raises(Exception, match=r"(?s)Process \d terminated with the following error:.*(NotADir|FileExists)"):
        seconds_a_step(tmp_path / "file", steps=1)
