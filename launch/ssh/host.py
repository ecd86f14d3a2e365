"""``python -m launch.ssh.host``: a host's part of a launch over ssh: says what is here, runs its ranks, ends with ssh.

Speaks with its launcher through standard input and output, a line of JSON a message. Where the launcher, or the network
to it, has gone silent, nothing that was started here stays.
"""

import contextlib
import json
import os
import select
import signal
import sys
import threading
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import psutil

from configs.exit_codes import EXIT_RETRY
from launch.inbox import SignalInbox
from launch.ssh.facts import Listener, facts, reach
from launch.supervisor import run_command

MARK = "@effnet "
"""How messages to the launcher begin; what else a login shell prints is no message."""
FIRST_LEASE_S = 60.0
OWNER = "EFFNET_SSH_SESSION"
"""Environment variable by which all that this session has started is known."""
SWEEPS = 50
Message = dict[str, Any]


class Channel:
    """Messages from and to the launcher. What cannot wait is done as it comes: beats, signals, the end."""

    def __init__(self, inbox: SignalInbox) -> None:
        self._inbox = inbox
        self._queue: SimpleQueue[Message | None] = SimpleQueue()
        # Standard output is ssh's; what this process starts must not write to it.
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        self._lease_s = FIRST_LEASE_S
        threading.Thread(target=self._listen, daemon=True).start()

    def receive(self) -> Message:
        """The next message that waits its turn.

        Raises:
            EOFError: If the launcher has ended this session, or is gone.
        """
        message = self._queue.get()
        if message is None:
            raise EOFError
        return message

    def say(self, **message: object) -> None:
        """Tell the launcher, which may be gone."""
        with contextlib.suppress(OSError):
            self._out.write(f"{MARK}{json.dumps(message)}\n")

    def _listen(self) -> None:
        rest = b""
        while True:
            ready, _, _ = select.select([0], [], [], self._lease_s)
            data = os.read(0, 65536) if ready else b""
            if not data:
                self._kill()
                return
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                self._take(json.loads(line))

    def _take(self, message: Message) -> None:
        if message["do"] == "ask":
            self._lease_s = message["lease_s"]
        if message["do"] == "signal":
            self._inbox.put(message["number"])
        elif message["do"] == "end":
            for child in psutil.Process().children():  # torchrun, which tells its ranks
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.terminate()
            timer = threading.Timer(message["within_s"], self._kill)
            timer.daemon = True
            timer.start()
        elif message["do"] == "kill":
            self._kill()
        elif message["do"] != "beat":
            self._queue.put(message)

    def _kill(self) -> None:
        for _ in range(2):  # the supervisor kills at the second one
            self._inbox.put(signal.SIGTERM)
        self._queue.put(None)


def main() -> int:
    """Answer and work until the launcher ends the session."""
    with SignalInbox() as inbox:
        channel = Channel(inbox)
        listener: Listener | None = None
        while True:
            try:
                message = channel.receive()
            except EOFError:
                return EXIT_RETRY
            if message["do"] == "ask":
                known = facts(token_file=Path(message["token_file"]), work_dir=Path(message["work_dir"]))
                channel.say(facts=known)
            elif message["do"] == "listen":
                try:
                    listener = Listener(message["address"], message["port"], message["token"])
                    channel.say(reached={"address": message["address"], "nic": listener.nic, "port": listener.port})
                except OSError as error:
                    channel.say(reached={"error": str(error)})
            elif message["do"] == "reach":
                try:
                    address, nic, token = reach(message["address"], message["port"])
                    channel.say(reached={"address": address, "nic": nic, "token": token})
                except OSError as error:
                    channel.say(reached={"error": str(error)})
            elif message["do"] == "start":
                if listener is not None:
                    listener.close()
                channel.say(ended=_run(message, inbox))


def _run(message: Message, inbox: SignalInbox) -> int:
    """Run the ranks to their end, and see that nothing of theirs is left; returns the status."""
    os.chdir(message["work_dir"])
    owner = {OWNER: message["session"]}
    try:
        return run_command(
            message["command"],
            devices=message["world_size"],
            log_dir=Path(message["log_dir"]),
            environment={**os.environ, **_interfaces(message["nic"]), **message["environment"], **owner},
            inbox=inbox,
            log_name=message["log_name"],
        )
    finally:
        _sweep(message["session"])


def _interfaces(nic: str | None) -> dict[str, str]:
    """What has gloo and NCCL use the interface that reaches the first host, unless this host says otherwise."""
    if nic is None:
        return {}
    known = {"GLOO_SOCKET_IFNAME": nic, "NCCL_SOCKET_IFNAME": f"={nic}"}
    return {name: value for name, value in known.items() if name not in os.environ}


def _sweep(session: str) -> None:
    """Kill what has been started by the ranks and outlives them."""
    for _ in range(SWEEPS):
        left = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(OWNER) == session and process.status() != psutil.STATUS_ZOMBIE:
                    left.append(process)
        if not left:
            return
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(0.1)


if __name__ == "__main__":
    sys.exit(main())
