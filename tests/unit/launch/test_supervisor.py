"""The supervisor with real processes and real signals, and what it makes of how they end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from configs.rank_records import PEER_LOST, StepFile, rank_error, rank_log, record_death, record_rank_error
from launch.supervisor import described, outcome, run_command, trainer_command

TIMEOUT_S = 20

SUPERVISOR = """
import os, pathlib, signal, sys
from launch.supervisor import run_command
folder, devices, *command = sys.argv[1:]
if "nohup" in os.environ:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
pathlib.Path(folder, "supervisor").touch()
status = run_command(command, devices=int(devices), log_dir=pathlib.Path(folder), environment=os.environ)
print(status)
"""
# Stands for a rank: makes its log, notes each signal it gets, goes on for 0.3 s, and ends with 85.
RANK = """
import pathlib, signal, sys, time
file = pathlib.Path(sys.argv[1])
got = []
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
for number in numbers:
    signal.signal(number, lambda number, _: got.append(signal.Signals(number).name))
file.with_suffix(".log").touch()
while not got:
    time.sleep(0.01)
time.sleep(0.3)
file.with_suffix(".got").write_text(" ".join(got))
sys.exit(85)
"""
# Stands for torchrun: starts two ranks after a while, and dies of a signal that reaches itself.
AGENT = """
import subprocess, sys, time
folder, rank = sys.argv[1:]
time.sleep(0.7)
ranks = [subprocess.Popen([sys.executable, "-c", rank, f"{folder}/rank_{number}"]) for number in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""
# Starts a process of its own and hears no signal but SIGKILL.
DEAF = """
import pathlib, signal, subprocess, sys, time
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, signal.SIG_IGN)
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
file = pathlib.Path(sys.argv[1])
file.with_suffix(".pid").write_text(str(worker.pid))
file.with_suffix(".log").touch()
time.sleep(60)
"""


class Supervisor:
    """A process that runs `run_command` and prints what it returned."""

    def __init__(self, folder: Path, *command: str, devices: int = 1, **environment: str) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-c", SUPERVISOR, str(folder), str(devices), *command],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )

    def wait_for(self, name: str) -> str:
        """The text of a file in the folder, once there is one."""
        deadline = time.monotonic() + TIMEOUT_S
        while not (self.folder / name).exists():
            assert self.process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return (self.folder / name).read_text()

    def status(self) -> int:
        output, _ = self.process.communicate(timeout=TIMEOUT_S)
        assert self.process.returncode == 0, output
        return int(output)


@pytest.fixture
def supervise(tmp_path: Path) -> Any:
    """Starts supervisors in the test's folder, and leaves no process behind."""
    started: list[Supervisor] = []

    def start(*command: str, devices: int = 1, **environment: str) -> Supervisor:
        started.append(Supervisor(tmp_path, *command, devices=devices, **environment))
        return started[-1]

    yield start
    for supervisor in started:
        if supervisor.process.poll() is None:
            for child in psutil.Process(supervisor.process.pid).children(recursive=True):
                child.kill()
            supervisor.process.kill()
            supervisor.process.wait()


Supervise = Callable[..., Supervisor]


# Commands


def test_one_device_trains_without_torchrun() -> None:
    assert trainer_command("fit", "runs/a", devices=1) == [sys.executable, "-m", "trainer", "fit", "runs/a"]


def test_several_devices_train_under_torchrun_without_its_restarts() -> None:
    command = trainer_command("fit", "runs/a", devices=4)

    assert command[:3] == [sys.executable, "-m", "trainer.agent"]
    assert command[-4:] == ["-m", "trainer", "fit", "runs/a"]
    assert {"--standalone", "--nproc-per-node=4", "--max-restarts=0"} == set(command[3:-4])


# Running


def test_the_status_is_the_childs(tmp_path: Path) -> None:
    def run(program: str) -> int:
        command = [sys.executable, "-c", program]
        return run_command(command, devices=1, log_dir=tmp_path, environment=os.environ)

    assert run("") == 0
    assert run("import sys; sys.exit(93)") == 93
    assert run("import os; os.kill(os.getpid(), 9)") == -9


def test_the_child_gets_the_environment_and_its_errors_go_to_the_log(tmp_path: Path) -> None:
    program = "import os, sys; sys.stderr.write(os.environ['SAYS'])"
    for word in ("one ", "two"):
        run_command([sys.executable, "-c", program], devices=1, log_dir=tmp_path, environment={"SAYS": word})

    assert (tmp_path / "launcher.log").read_text() == "one two"


def test_handlers_are_as_before_afterwards(tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]

    run_command([sys.executable, "-c", ""], devices=1, log_dir=tmp_path, environment=os.environ)
    with pytest.raises(FileNotFoundError):
        run_command(["/absent"], devices=1, log_dir=tmp_path, environment=os.environ)

    assert [signal.getsignal(number) for number in numbers] == before


def test_the_child_is_out_of_reach_of_the_terminal(tmp_path: Path) -> None:
    program = f"import os, pathlib; pathlib.Path({str(tmp_path)!r}, 'session').write_text(str(os.getsid(0)))"
    run_command([sys.executable, "-c", program], devices=1, log_dir=tmp_path, environment=os.environ)

    assert int((tmp_path / "session").read_text()) != os.getsid(0)


# Signals


@pytest.mark.parametrize(
    ("sent", "received"),
    [("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")],
)
def test_a_signal_reaches_the_child_exactly_once(
    sent: str, received: str, supervise: Supervise, tmp_path: Path
) -> None:
    supervisor = supervise(sys.executable, "-c", RANK, str(tmp_path / "rank_0"))
    supervisor.wait_for("rank_0.log")

    supervisor.process.send_signal(signal.Signals[sent])

    assert supervisor.status() == 85
    assert (tmp_path / "rank_0.got").read_text() == received


def test_a_signal_reaches_every_rank_once_and_torchrun_never(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(sys.executable, "-c", AGENT, str(tmp_path), RANK, devices=2)
    for rank in ("rank_0", "rank_1"):
        supervisor.wait_for(f"{rank}.log")

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.status() == 85
    assert [(tmp_path / f"{rank}.got").read_text() for rank in ("rank_0", "rank_1")] == ["SIGTERM", "SIGTERM"]


@pytest.mark.parametrize("devices", [1, 2])
def test_a_signal_that_comes_before_the_ranks_listen_waits_for_them(
    devices: int, supervise: Supervise, tmp_path: Path
) -> None:
    slow = f"import time; time.sleep(0.4)\n{RANK}"
    command = [slow, str(tmp_path / "rank_0")] if devices == 1 else [AGENT, str(tmp_path), slow]
    supervisor = supervise(sys.executable, "-c", *command, devices=devices)
    supervisor.wait_for("launcher.log")
    assert not (tmp_path / "rank_0.log").exists()

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.status() == 85
    assert [path.read_text() for path in tmp_path.glob("*.got")] == ["SIGTERM"] * devices


def test_a_child_that_ends_before_it_listens_is_not_waited_for(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(sys.executable, "-c", "import sys, time; time.sleep(0.5); sys.exit(3)")
    supervisor.wait_for("launcher.log")

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.status() == 3


def test_a_second_signal_kills_the_child_and_all_it_started(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(sys.executable, "-c", DEAF, str(tmp_path / "rank_0"))
    supervisor.wait_for("rank_0.log")
    supervisor.process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert supervisor.process.poll() is None

    supervisor.process.send_signal(signal.SIGINT)

    assert supervisor.status() == -signal.SIGKILL
    worker = int((tmp_path / "rank_0.pid").read_text())
    assert not psutil.pid_exists(worker) or psutil.Process(worker).status() == psutil.STATUS_ZOMBIE


def test_a_second_signal_kills_ranks_that_never_listened(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(sys.executable, "-c", "import time; time.sleep(60)", devices=2)
    supervisor.wait_for("launcher.log")
    supervisor.process.send_signal(signal.SIGTERM)
    time.sleep(0.5)
    assert supervisor.process.poll() is None

    supervisor.process.send_signal(signal.SIGTERM)

    assert supervisor.status() == -signal.SIGKILL


def test_under_nohup_a_hang_up_has_no_effect(supervise: Supervise, tmp_path: Path) -> None:
    supervisor = supervise(sys.executable, "-c", RANK, str(tmp_path / "rank_0"), nohup="1")
    supervisor.wait_for("rank_0.log")

    supervisor.process.send_signal(signal.SIGHUP)
    time.sleep(0.5)
    supervisor.process.send_signal(signal.SIGUSR1)

    assert supervisor.status() == 85
    assert (tmp_path / "rank_0.got").read_text() == "SIGUSR1"


# Outcomes


def leave(log_dir: Path, rank: int, *, code: int, reason: str, when: float) -> None:
    error = {"time": when, "rank": rank, "host": f"node{rank}", "exit_code": code, "reason": reason}
    rank_error(log_dir, rank).write_text(json.dumps(error))


def told(status: int, log_dir: Path) -> dict[str, Any]:
    result = outcome(status, attempt=3, log_dir=log_dir, started=100.0)
    assert result.pop("attempt") == 3
    assert result.pop("started") == 100.0
    assert abs(result.pop("ended") - time.time()) < 5
    return result


def test_success_is_done_whatever_a_rank_left(tmp_path: Path) -> None:
    done = {
        "exit_code": 0,
        "exit_class": "done",
        "rank": None,
        "host": None,
        "step": None,
        "error": None,
        "reason": "done",
    }
    assert told(0, tmp_path) == done

    leave(tmp_path, 1, code=1, reason="teardown", when=1)
    assert told(0, tmp_path) == done


def test_a_failure_is_that_of_the_rank_that_failed_first(tmp_path: Path) -> None:
    leave(tmp_path, 0, code=1, reason="DistBackendError: peer closed\nlong\ntext", when=20)
    leave(tmp_path, 2, code=1, reason="RuntimeError: out of memory\ntrace", when=10)

    assert told(1, tmp_path) == {
        "exit_code": 1,
        "exit_class": "retry",
        "rank": 2,
        "host": "node2",
        "step": None,
        "error": None,
        "reason": "RuntimeError: out of memory",
    }


def test_an_interruption_is_85(tmp_path: Path) -> None:
    for rank in (0, 1):
        leave(tmp_path, rank, code=85, reason="checkpointed at step 7 after SIGTERM", when=rank)

    assert told(1, tmp_path) == {
        "exit_code": 85,
        "exit_class": "interrupted",
        "rank": 0,
        "host": "node0",
        "step": None,
        "error": None,
        "reason": "checkpointed at step 7 after SIGTERM",
    }


def test_a_rank_that_failed_outweighs_earlier_ranks_that_were_interrupted(tmp_path: Path) -> None:
    leave(tmp_path, 0, code=85, reason="checkpointed", when=1)
    leave(tmp_path, 1, code=1, reason="OSError: disk full", when=2)

    result = told(85, tmp_path)

    assert (result["exit_class"], result["rank"], result["reason"]) == ("retry", 1, "OSError: disk full")


def test_a_run_that_goes_back_is_told_from_other_failures(tmp_path: Path) -> None:
    leave(tmp_path, 1, code=85, reason="SIGTERM", when=1)
    record = {"time": 2, "rank": 0, "host": "node0", "exit_code": 1, "reason": "step 7: rolled back", "rollback": True}
    rank_error(tmp_path, 0).write_text(json.dumps(record))

    assert told(1, tmp_path) == {
        "exit_code": 1,
        "exit_class": "retry",
        "rank": 0,
        "host": "node0",
        "step": None,
        "error": None,
        "reason": "step 7: rolled back",
        "rollback": True,
    }
    assert "rollback" not in told(0, tmp_path)


def test_losing_a_peer_is_never_the_root_cause(tmp_path: Path) -> None:
    record_rank_error(tmp_path, 0, code=1, reason="RuntimeError: Connection closed by peer", error=PEER_LOST)
    StepFile(tmp_path, 1).write(2**40)
    record_death(tmp_path, 1, status=-9, code=1)  # later, by the agent that finds it dead

    result = told(1, tmp_path)

    assert (result["rank"], result["step"], result["error"]) == (1, 2**40, None)
    assert described(result) == f"rank 1 ({socket.gethostname()}), step {2**40}: killed by SIGKILL"


def test_a_rank_that_is_killed_once_all_have_the_checkpoint_takes_nothing_back(tmp_path: Path) -> None:
    record_death(tmp_path, 1, status=-15, code=1)
    assert told(1, tmp_path)["exit_class"] == "retry"

    record_rank_error(tmp_path, 0, code=85, reason="SIGTERM at step 3: checkpointed", error="Interrupted")
    assert told(1, tmp_path)["exit_class"] == "interrupted"


def test_word_that_a_rank_has_left_is_kept(tmp_path: Path) -> None:
    record_rank_error(tmp_path, 0, code=93, reason="shard 3 is truncated", error="DataError")
    record_death(tmp_path, 0, status=93, code=1)

    assert told(1, tmp_path)["reason"] == "shard 3 is truncated"


def test_the_rank_of_a_run_of_one_is_known_though_it_left_no_word(tmp_path: Path) -> None:
    rank_log(tmp_path, 0).touch()
    StepFile(tmp_path, 0).write(7)

    result = told(-9, tmp_path)

    assert (result["rank"], result["host"], result["step"]) == (0, socket.gethostname(), 7)


def test_a_mistake_of_the_users_keeps_all_its_lines(tmp_path: Path) -> None:
    reason = "configuration: 1 problem\n  seed\n      received  x"
    leave(tmp_path, 1, code=93, reason=reason, when=1)
    leave(tmp_path, 0, code=1, reason="peer closed", when=2)

    result = told(1, tmp_path)

    assert (result["exit_code"], result["exit_class"], result["reason"]) == (93, "do_not_retry", reason)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (-9, "killed by SIGKILL"),
        (-11, "killed by SIGSEGV"),
        (-15, "killed by SIGTERM"),
        (-50, "killed by signal 50"),
        (2, "ended with status 2 and no word of why"),
    ],
)
def test_an_end_without_a_word_is_a_retry(status: int, reason: str, tmp_path: Path) -> None:
    assert told(status, tmp_path) == {
        "exit_code": 1,
        "exit_class": "retry",
        "rank": None,
        "host": None,
        "step": None,
        "error": None,
        "reason": reason,
    }


def test_a_failure_without_a_reason_is_no_crash_of_the_supervisor(tmp_path: Path) -> None:
    leave(tmp_path, 0, code=1, reason="", when=1)

    assert told(1, tmp_path)["reason"] == ""
