"""Runs the training processes of this machine, passes signals on to them, and says how they ended.

The command runs in a session of its own, so that Ctrl-C reaches the supervisor alone, which tells the ranks, and
torchrun's agent, which would kill them, hears nothing of it.
"""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from configs.run import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, exit_class, rank_errors

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def trainer_command(*arguments: str, devices: int) -> list[str]:
    """``python -m trainer …``, under torchrun for several devices."""
    if devices == 1:
        return [sys.executable, "-m", "trainer", *arguments]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "--max-restarts=0"]
    return [sys.executable, *torchrun, "-m", "trainer", *arguments]


def run_command(command: Sequence[str], *, devices: int, log_dir: Path, environment: Mapping[str, str]) -> int:
    """Run to the end; returns the process's status, negative for a signal.

    Standard error of the launcher itself goes to ``launcher.log``; each rank writes its own log.
    """
    with (log_dir / "launcher.log").open("ab") as log:
        child = subprocess.Popen(command, stderr=log, env=dict(environment), start_new_session=True)
        seen: list[int] = []

        def forward(number: int, _: FrameType | None) -> None:
            # A second signal ends all at once; in a thread, because a handler must not block.
            seen.append(number)
            threading.Thread(target=_send, args=(child, devices, number if len(seen) == 1 else signal.SIGKILL)).start()

        previous = {number: signal.signal(number, forward) for number in SIGNALS}
        try:
            return child.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def outcome(status: int, *, attempt: int, log_dir: Path, started: float) -> dict[str, Any]:
    """How an attempt ended, from the status and what the ranks left: code, class, first failing rank, reason."""
    errors = rank_errors(log_dir)
    culprits = [error for error in errors if error["exit_code"] != EXIT_INTERRUPTED]
    first = next(iter(culprits or errors), None)
    if status == EXIT_DONE:
        code, reason = EXIT_DONE, "done"
    elif first is not None:
        code, reason = int(first["exit_code"]), str(first["reason"])
    else:
        code, reason = 1, _ended(status)
    return {
        "attempt": attempt,
        "exit_code": code,
        "exit_class": exit_class(code),
        "rank": first["rank"] if first and code != EXIT_DONE else None,
        "host": first["host"] if first and code != EXIT_DONE else None,
        "reason": reason if code == EXIT_DO_NOT_RETRY else reason.splitlines()[0],
        "started": started,
        "ended": time.time(),
    }


def _ended(status: int) -> str:
    if status < 0:
        return f"killed by {signal.Signals(-status).name}"
    return f"ended with status {status} and no word of why"


def _send(child: subprocess.Popen[bytes], devices: int, number: int) -> None:
    """Signal the ranks: the child itself, or torchrun's children."""
    try:
        process = psutil.Process(child.pid)
        targets = [process] if devices == 1 else process.children()
        if number == signal.SIGKILL:
            targets = [*process.children(recursive=True), process]
        for target in targets:
            target.send_signal(number)
    except psutil.NoSuchProcess:
        pass  # it has just ended
