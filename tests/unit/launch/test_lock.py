"""The run's lock, held by real processes."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from configs.run import RunDirectory
from launch.lock import RunInProgressError, locked
from tests.unit.launch.commands import effnet
from tests.unit.launch.test_cli import MINIMAL

HOLD = """
import subprocess, sys
from pathlib import Path
from configs.run import RunDirectory
from launch.lock import locked
with locked(RunDirectory(Path(sys.argv[1]))) as lock:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=sys.stdin, pass_fds=(lock,))
    print(child.pid, flush=True)
    child.wait()
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "mine")
    run.create()
    return run


def test_a_second_launcher_is_told_who_holds_the_run(run: RunDirectory) -> None:
    with (
        locked(run),
        pytest.raises(RunInProgressError, match=r"mine is in progress, started by process \d+ on "),
        locked(run),
    ):
        pass
    with locked(run):
        pass


def test_the_lock_outlives_a_killed_launcher_as_long_as_what_it_started(run: RunDirectory) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert int(holder.stdout.readline())
    holder.send_signal(signal.SIGKILL)
    holder.wait()

    with pytest.raises(RunInProgressError), locked(run):
        pass
    holder.stdin.close()  # ends the child
    holder.stdout.read()
    with locked(run):
        pass


def test_fit_leaves_a_run_in_progress_alone(run: RunDirectory) -> None:
    with locked(run):
        done = effnet("fit", *MINIMAL, "run_id=mine", f"runs_dir={run.path.parent}", cwd=run.path.parent)

    assert done.returncode == 1
    assert "is in progress" in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.config_file.exists()
