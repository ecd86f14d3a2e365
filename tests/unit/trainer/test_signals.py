import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.unit.trainer.runs import changed, new_run, rows, train, weights
from trainer.checkpointing import Interrupted
from trainer.signals import ECHO_S, SIGNALS, StopFlag

PROGRAM = """
import sys, time
from trainer.signals import StopFlag
flag = StopFlag().install()
assert "torch" not in sys.modules
print("ready", flush=True)
said = False
while True:
    time.sleep(0.01)
    if flag.received and not said:
        print(flag.received.name, flush=True)
        said = True
"""


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    yield child
    child.kill()
    child.wait()


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_the_first_signal_sets_the_flag_and_a_second_one_ends_the_process(
    number: signal.Signals, process: "subprocess.Popen[str]"
) -> None:
    process.send_signal(number)
    assert process.stdout is not None
    assert process.stdout.readline() == f"{number.name}\n"
    process.send_signal(number)  # an echo
    time.sleep(ECHO_S + 0.2)
    assert process.poll() is None

    process.send_signal(number)
    assert process.wait(timeout=10) == -number  # the default action, as if nobody had caught it


def test_a_second_signal_of_another_kind_ends_the_process_too(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    assert process.stdout.readline() == "SIGUSR1\n"

    time.sleep(ECHO_S + 0.2)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=10) == -signal.SIGTERM


STUCK = """
import ctypes, threading, time
from tests.faults import waiting_in_c_on_purpose
from trainer.signals import StopFlag
flag = StopFlag().install()

def say():
    while not flag.received:
        time.sleep(0.01)
    print(flag.received.name, flush=True)

threading.Thread(target=say, daemon=True).start()
print("ready", flush=True)
waiting_in_c_on_purpose(ctypes.CDLL(None))
"""


@pytest.mark.parametrize("second", SIGNALS, ids=lambda number: number.name)
def test_signals_are_heard_while_the_main_thread_waits_in_c(second: signal.Signals) -> None:
    child = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.5)
        child.send_signal(signal.SIGTERM)
        assert child.stdout.readline() == "SIGTERM\n"
        time.sleep(ECHO_S + 0.5)
        assert child.poll() is None

        child.send_signal(second)
        assert child.wait(timeout=10) == -second
    finally:
        child.kill()
        child.wait()


def test_a_signal_to_a_forked_child_is_not_for_its_parent() -> None:
    program = """
import os, signal, time
from trainer.signals import StopFlag
flag = StopFlag().install()
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
time.sleep(0.3)
os.kill(child, signal.SIGTERM)
time.sleep(0.5)
os.kill(child, signal.SIGKILL)
print(flag.received)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "None\n"


def test_the_flag_remembers_the_first_signal_alone() -> None:
    flag = StopFlag()
    assert flag.received is None
    flag._handle(signal.SIGUSR1, None)
    assert flag.received is signal.SIGUSR1


@pytest.fixture
def installed() -> Iterator[StopFlag]:
    """A flag for the signals of this very process."""
    previous = {number: signal.getsignal(number) for number in SIGNALS}
    yield StopFlag().install()
    for number, handler in previous.items():
        signal.signal(number, handler)


def test_a_signal_ends_training_with_a_checkpoint_and_the_run_goes_on_from_it(
    installed: StopFlag, toy_overrides: Callable[..., list[str]], trained: RunDirectory, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(trainer__max_epochs=2), tmp_path)

    def signal_at_step_4() -> None:
        while not (run.metrics_file.exists() and any(row.get("step") == "4" for row in rows(run))):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=signal_at_step_4, daemon=True)
    thread.start()
    with pytest.raises(Interrupted, match=r"SIGTERM at step \d+: checkpointed"):
        train(run, flag=installed)
    thread.join()
    (path,) = run.checkpoints.glob("step-*")
    step = int(path.name.removeprefix("step-"))
    assert 4 <= step < 17
    assert rows(run)[-1]["step"] == str(step)

    train(run, attempt=1)
    assert not changed(weights(trained, 17), weights(run, 17))
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(trained)]
