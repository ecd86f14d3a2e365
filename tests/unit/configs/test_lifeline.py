"""Real processes whose parent is killed."""

import os
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest

from configs.lifeline import end_with_parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what ends them is Linux's")
SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
PARENT = f"""
import os, subprocess, sys, time
from functools import partial
from configs.lifeline import end_with_parent
child = subprocess.Popen({SLEEP!r}, stdout=subprocess.DEVNULL, preexec_fn=partial(end_with_parent, os.getpid()))
print(child.pid, flush=True)
time.sleep(600)
"""


def test_a_process_ends_with_the_parent_that_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()

    _, alive = psutil.wait_procs([child], timeout=30)
    assert not alive


def test_a_process_whose_parent_has_ended_already_ends_at_once() -> None:
    child = subprocess.Popen(SLEEP, preexec_fn=partial(end_with_parent, os.getpid() + 1))
    assert child.wait(timeout=30) == -signal.SIGKILL
