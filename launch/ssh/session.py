"""The launcher's end of the sessions with the hosts of a launch over ssh: one process of ssh each."""

import contextlib
import json
import os
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from queue import Empty, SimpleQueue
from typing import IO, Any

from configs.lifeline import end_with_parent
from launch.ssh.host import MARK, Message
from launch.ssh.hostfile import Host

CLOSING_S = 15.0
"""Longest time in which a host ends what it runs once it is told."""
SAID_BYTES = 4000
POLL_S = 0.2


class Session:
    """ssh to one host, which runs `launch.ssh.host`.

    Attributes:
        host: The host.
        number: Its place among the hosts.
        closed: Whether ssh has ended.
    """

    def __init__(self, host: Host, number: int, command: Sequence[str], inbox: "Inbox") -> None:
        self.host, self.number, self.closed = host, number, False
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - for as long as the session
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # Ctrl-C is for the launcher alone
            preexec_fn=partial(end_with_parent, os.getpid()),  # safe: started before any thread here
        )
        self._inbox = inbox
        self._lock = threading.Lock()

    def listen(self) -> None:
        """Begin to take what the host says."""
        threading.Thread(target=self._listen, daemon=True).start()

    def say(self, do: str, **message: object) -> None:
        """Tell the host, which may be gone."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps({"do": do, **message}).encode() + b"\n")
            self._process.stdin.flush()

    def last_words(self) -> str:
        """The last line that ssh, or Python on the host, wrote to standard error."""
        size = os.fstat(self._errors.fileno()).st_size
        text = os.pread(self._errors.fileno(), SAID_BYTES, max(size - SAID_BYTES, 0)).decode("utf-8", "replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        status = self._process.poll()
        silence = "no answer" if status is None else f"ssh ended with status {status} and no word"
        return lines[-1] if lines else silence

    def hang_up(self) -> None:
        """Close the host's standard input, at which it ends what it runs."""
        assert self._process.stdin is not None
        with self._lock, contextlib.suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline: float) -> None:
        """Wait for ssh until then (monotonic seconds), and kill it."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(max(deadline - time.monotonic(), 0.0))
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith(MARK.encode()):
                message = json.loads(line[len(MARK) :])
                if "facts" in message:
                    message["facts"]["received"] = time.time()
                self._inbox.put((self, message))
        self._process.wait()
        self._inbox.put((self, None))


Inbox = SimpleQueue[tuple[Session, Message | None]]
"""What hosts say, in the order in which it comes; None where ssh has ended."""


class StoppedError(Exception):
    """A signal has come while hosts were asked."""


class Sessions:
    """All of them.

    Attributes:
        all: In the order of the hosts.
    """

    def __init__(self, sessions: Sequence[Session], inbox: Inbox, stopped: Callable[[], bool]) -> None:
        self.all = list(sessions)
        self._inbox = inbox
        self._stopped = stopped

    def receive(self, timeout_s: float) -> tuple[Session, Message | None] | None:
        """The next thing that a host says, or the end of its session; None if nothing comes in time."""
        try:
            session, message = self._inbox.get(timeout=timeout_s)
        except Empty:
            return None
        session.closed = session.closed or message is None
        return session, message

    def answers(self, asked: Sequence[Session], key: str, *, within_s: float) -> dict[Session, Any]:
        """What those asked say under ``key``. Hosts that are gone, or silent for too long, are missing.

        Raises:
            StoppedError: If a signal comes meanwhile.
        """
        deadline, found = time.monotonic() + within_s, dict[Session, Any]()
        while any(session not in found and not session.closed for session in asked) and time.monotonic() < deadline:
            if self._stopped():
                raise StoppedError
            session, message = self.receive(POLL_S) or (None, None)
            if session is not None and message is not None and key in message:
                found[session] = message[key]
        return found

    def say(self, do: str, **message: object) -> None:
        """Tell all hosts."""
        for session in self.all:
            session.say(do, **message)


@contextmanager
def connected(
    commands: Sequence[tuple[Host, Sequence[str]]], *, beat_s: float, stopped: Callable[[], bool]
) -> Iterator[Sessions]:
    """Sessions with all hosts. At the end, however it comes, nothing that they have started stays.

    Args:
        commands: Each host with the arguments of ssh.
        beat_s: Seconds between two signs of life to each.
        stopped: Whether a signal has come.
    """
    inbox: Inbox = SimpleQueue()
    sessions = Sessions(
        [Session(host, i, command, inbox) for i, (host, command) in enumerate(commands)], inbox, stopped
    )
    done = threading.Event()

    def beat() -> None:
        while not done.wait(beat_s):
            sessions.say("beat")

    try:
        for session in sessions.all:
            session.listen()
        threading.Thread(target=beat, daemon=True).start()
        yield sessions
    finally:
        done.set()
        for session in sessions.all:
            session.hang_up()
        deadline = time.monotonic() + CLOSING_S
        for session in sessions.all:
            session.end(deadline)
