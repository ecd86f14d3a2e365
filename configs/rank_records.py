"""What a rank leaves for launchers, on whichever node it is: its log, how far it has come, and what ended it."""

import contextlib
import json
import os
import signal
import socket
import struct
import time
from pathlib import Path
from typing import Any, Final

from configs.files import write_atomically

HANG: Final = "Hang"
"""Stands for the type of an error where a rank made no progress."""
PEER_LOST: Final = "PeerLost"
"""Stands for the type of an error that only says that another rank, or the network to it, is gone."""
_STEP: Final = struct.Struct("<q")


class StepFile:
    """A rank's number of optimizer steps, in 8 bytes that outlive it."""

    def __init__(self, log_dir: Path, global_rank: int) -> None:
        log_dir.mkdir(parents=True, exist_ok=True)
        self._file = _step_file(log_dir, global_rank).open("wb", buffering=0)

    def write(self, step: int) -> None:
        """Replace the number: about a microsecond, waits for no disk. A full one is no reason to end training."""
        with contextlib.suppress(OSError):
            os.pwrite(self._file.fileno(), _STEP.pack(step), 0)


def read_step(log_dir: Path, global_rank: int) -> int | None:
    """Optimizer steps that a rank had completed; None if training had not begun."""
    try:
        content = _step_file(log_dir, global_rank).read_bytes()
    except OSError:
        return None
    return int(_STEP.unpack(content)[0]) if len(content) == _STEP.size else None


def rank_log(log_dir: Path, global_rank: int) -> Path:
    """Everything one rank printed. Made after the rank's signal handlers: where it exists, signals may be sent."""
    return log_dir / f"rank_{global_rank:05d}.log"


def rank_error(log_dir: Path, global_rank: int) -> Path:
    """What ended one rank before its time: JSON with time, rank, host, step, exit_code, error, reason."""
    return log_dir / f"rank_{global_rank:05d}.error.json"


def rank_errors(log_dir: Path) -> list[dict[str, Any]]:
    """What the ranks of an attempt left behind, the root cause first.

    That is the earliest. Losing a peer is none: survivors may say so before there is word of a rank that was killed.
    """
    found = [json.loads(path.read_text(encoding="utf-8")) for path in log_dir.glob("rank_*.error.json")]
    return sorted(found, key=lambda error: (error.get("error") == PEER_LOST, error["time"]))


def record_rank_error(
    log_dir: Path, global_rank: int, *, code: int, reason: str, error: str | None = None, rollback: bool = False
) -> None:
    """Write what ended a rank before its time.

    Args:
        log_dir: Folder of the attempt's logs.
        global_rank: The rank.
        code: Its exit code.
        reason: For a person; where a line is wanted, the first one.
        error: Type of the exception, or `PEER_LOST`, or `HANG`.
        rollback: Whether the launcher starts the next attempt at once.
    """
    _write(log_dir, global_rank, code=code, reason=reason, error=error, **({"rollback": True} if rollback else {}))


def record_death(log_dir: Path, global_rank: int, *, status: int, code: int) -> None:
    """Write how a rank ended that has left no word itself.

    Args:
        log_dir: Folder of the attempt's logs.
        global_rank: The rank.
        status: Of its process; negative for a signal.
        code: The exit code to go by.
    """
    if not rank_error(log_dir, global_rank).exists():
        name = signal_name(-status) if status < 0 else None
        _write(log_dir, global_rank, code=code, reason=death(status), error=None, signal=name)


def death(status: int) -> str:
    """How a process ended that left no word, in a line."""
    return f"killed by {signal_name(-status)}" if status < 0 else f"ended with status {status} and no word of why"


def signal_name(number: int) -> str:
    """Such as ``SIGKILL``."""
    return {each.value: each.name for each in signal.Signals}.get(number, f"signal {number}")


def _write(log_dir: Path, global_rank: int, *, code: int, reason: str, error: str | None, **more: object) -> None:
    record: dict[str, object] = {
        "time": time.time(),
        "rank": global_rank,
        "host": socket.gethostname(),
        "step": read_step(log_dir, global_rank),
        "exit_code": code,
        "error": error,
        "reason": reason,
        **more,
    }
    write_atomically(rank_error(log_dir, global_rank), json.dumps(record, indent=2) + "\n")


def _step_file(log_dir: Path, global_rank: int) -> Path:
    return log_dir / f"rank_{global_rank:05d}.step"
