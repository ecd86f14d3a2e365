"""Runs the training processes of this machine, passes signals on to them, and says how they ended.

The command runs in a session of its own, so that Ctrl-C reaches the supervisor alone, which tells the ranks, and
torchrun's agent, which would kill them, hears nothing of it.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY, exit_class
from configs.lifeline import end_with_parent
from configs.rank_records import death, rank_errors, read_step
from launch.inbox import SignalInbox
from launch.temporary import temporary_files

ENDED = 0
"""Stands among the signals received for the end of the child."""
GRACE_S = 15.0
"""Longest time in which ranks end by themselves once another has died."""
POLL_S = 0.2
"""Seconds between two looks whether the ranks listen."""


def trainer_command(*arguments: str, devices: int) -> list[str]:
    """``python -m trainer …``, under torchrun for several devices."""
    if devices == 1:
        return [sys.executable, "-m", "trainer", *arguments]
    torchrun = ["-m", "trainer.agent", "--standalone", f"--nproc-per-node={devices}", "--max-restarts=0"]
    return [sys.executable, *torchrun, "-m", "trainer", *arguments]


def run_command(
    command: Sequence[str],
    *,
    devices: int,
    log_dir: Path,
    environment: Mapping[str, str],
    inherited: Sequence[int] = (),
    inbox: SignalInbox | None = None,
    log_name: str = "launcher.log",
) -> int:
    """Run to the end; returns the process's status, negative for a signal.

    The first signal goes to the ranks, as soon as their logs say that they listen; a second one ends all at once. A
    terminal that closes counts as SIGTERM. Standard error of the launcher itself goes to ``launcher.log``; each rank
    writes its own log. There is no standard input: nothing may wait for an answer. The kernel kills the child when the
    calling thread ends, by whatever: call this in the main one.

    Args:
        command: The trainer's, or torchrun's.
        devices: Ranks that it starts.
        log_dir: Folder of the ranks' logs.
        environment: All of the child's, but for TMPDIR, which is a folder of its own that is removed.
        inherited: File descriptors that stay open in the child.
        inbox: Takes the signals; one for this command alone if left out.
        log_name: File in ``log_dir`` for standard error; one for each host where several launch.
    """
    inbox_or_new = SignalInbox() if inbox is None else contextlib.nullcontext(inbox)
    with temporary_files(environment) as own, inbox_or_new as received:
        with (log_dir / log_name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stderr=log,
                env=own,
                pass_fds=inherited,
                start_new_session=True,
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: no other thread is at work here
            )
        # In a thread, because a handler must not block.
        messenger = threading.Thread(target=_pass_on, args=(received, child, devices, log_dir))
        messenger.start()
        status = child.wait()
        received.put(ENDED)
        messenger.join()
        return status


def agent_environment(environment: Mapping[str, str], *, timeout_s: float) -> dict[str, str]:
    """With the time in which torchrun has the other ranks end when one has died: at most a peer's timeout."""
    return {"TORCH_ELASTIC_SHUTDOWN_TIMEOUT": str(max(int(min(GRACE_S, timeout_s)), 1)), **environment}


def outcome(status: int, *, attempt: int, log_dir: Path, started: float) -> dict[str, Any]:
    """How an attempt ended, from the command's status and what the ranks left.

    Returns:
        Exit code and class; of the first rank that failed, on any node, its number, host, optimizer steps, and error.
    """
    errors = rank_errors(log_dir)
    saved = [error for error in errors if error["exit_code"] == EXIT_INTERRUPTED]
    # Ranks say so when all have the checkpoint: those that are killed on their way out take nothing back.
    culprits = [error for error in errors if error not in saved and not (saved and error.get("signal"))]
    first = next(iter(culprits or saved), None)
    if status == EXIT_DONE:
        code, told = EXIT_DONE, {"reason": "done"}
    elif first is not None:
        code, told = int(first["exit_code"]), first
    else:
        code, told = EXIT_RETRY, _without_a_word(status, log_dir)
    reason = str(told["reason"])
    return {
        "attempt": attempt,
        "exit_code": code,
        "exit_class": exit_class(code),
        **{key: told.get(key) for key in ("rank", "host", "step", "error")},
        "reason": reason if code == EXIT_DO_NOT_RETRY else reason.partition("\n")[0],
        "started": started,
        "ended": time.time(),
        **({"rollback": True} if told.get("rollback") else {}),
    }


def described(result: Mapping[str, Any]) -> str:
    """In a line: where an attempt ended (rank, host, optimizer steps) and why."""
    parts = [f"rank {result['rank']} ({result['host']})"] if result["rank"] is not None else []
    parts += [f"step {result['step']}"] if result.get("step") is not None else []
    return ": ".join([*([", ".join(parts)] if parts else []), str(result["reason"])])


def _without_a_word(status: int, log_dir: Path) -> dict[str, Any]:
    """What can be said of an end of which no rank has said anything; if it was alone, it was that rank."""
    ranks = [int(path.stem.removeprefix("rank_")) for path in log_dir.glob("rank_*.log")]
    if len(ranks) != 1:
        return {"reason": death(status)}
    return {
        "reason": death(status),
        "rank": ranks[0],
        "host": socket.gethostname(),
        "step": read_step(log_dir, ranks[0]),
    }


def _pass_on(received: SignalInbox, child: subprocess.Popen[bytes], devices: int, log_dir: Path) -> None:
    """Send the first signal to the ranks once they listen; at the second, kill."""
    first, then = received.get(), None
    while first != ENDED and then is None:
        if len(list(log_dir.glob("rank_*.log"))) >= devices:
            assert first is not None
            _send(_ranks(child, devices), first)
            then = received.get()
        else:
            then = received.get(POLL_S)
    if first != ENDED and then != ENDED:
        with contextlib.suppress(psutil.NoSuchProcess):
            agent = psutil.Process(child.pid)
            _send([*agent.children(recursive=True), agent], signal.SIGKILL)


def _ranks(child: subprocess.Popen[bytes], devices: int) -> list[psutil.Process]:
    """The processes that train: the child itself, or torchrun's children."""
    try:
        process = psutil.Process(child.pid)
        return [process] if devices == 1 else process.children()
    except psutil.NoSuchProcess:  # it has just ended
        return []


def _send(processes: Sequence[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
