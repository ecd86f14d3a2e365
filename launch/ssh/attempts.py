"""Attempts of a run on hosts that are reached by ssh: each begins with a preflight, and ends on all hosts or none."""

import os
import secrets
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY, exit_class
from configs.problems import ConfigError
from configs.rank_records import HANG, PEER_LOST
from configs.run import STARTED, RunDirectory
from configs.schema import Config
from launch.attempt import again
from launch.disk import recorded
from launch.inbox import SignalInbox
from launch.job import JobSpec
from launch.reading_logs import show_logs
from launch.restarts import Restarts, judged
from launch.ssh.hostfile import Host
from launch.ssh.preflight import Meeting, preflight
from launch.ssh.rendering import ALIVE_COUNT, rank_command, ssh_command, variables
from launch.ssh.session import Session, Sessions, StoppedError, connected
from launch.supervisor import GRACE_S, agent_environment, described, outcome

POLL_S = 0.2
SECRETS = ("WANDB_API_KEY", "HF_TOKEN", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
"""Variables of this shell that ranks get through standard input of ssh, and that no file or argument holds."""
TOKEN = ".shared"
CONSEQUENCES = (None, PEER_LOST, HANG)
"""Types of errors by which ranks end where a host is lost."""
END_S, GIVE_UP_S = GRACE_S + 5.0, 30.0
"""Longest times in which a host's ranks end by torchrun, and in which it says that they have been killed."""


@dataclass(frozen=True, kw_only=True)
class SshAttempts:
    """What all attempts have in common.

    Attributes:
        config: The run's.
        run: Its directory, by its absolute path.
        spec: The job.
        hosts: Where it runs, the one with the rendezvous first.
        inbox: Takes the signals of this process.
        started: When this process began, in seconds since the epoch.
        console: For a person.
        streams: Whether to print what ranks write.
    """

    config: Config
    run: RunDirectory
    spec: JobSpec
    hosts: Sequence[Host]
    inbox: SignalInbox
    started: float
    console: Console
    streams: bool = True

    def run_all(self) -> dict[str, Any]:
        """Run the job, and again after failures as often as it may; returns the last outcome.

        Raises:
            ConfigError: If a host would not train.
        """
        backoff = Restarts(limit=self.spec.max_failures + 1, backoff_s=self.config.fault.restart_backoff_s)
        result: dict[str, Any] | None = None
        while True:
            before = self.run.latest_checkpoint()
            try:
                result = self._attempt()
            except StoppedError:
                return _stopped("before ranks were started")
            except ConfigError as error:
                if result is None:
                    raise
                self._say(str(error))  # a host that has failed: what ended the attempt says more
                return result
            code = result["exit_code"]
            if code in (EXIT_DONE, EXIT_INTERRUPTED, EXIT_DO_NOT_RETRY) or self.inbox.received:
                return result
            if result.get("rollback"):  # the trainer bounds their number
                self._say(f"{result['reason']}; going back")
                continue
            if not again(self.run.outcomes(), requeues=0, max_requeues=1, max_failures=self.spec.max_failures):
                return result
            wait_s = backoff.next_backoff_s(progressed=self.run.latest_checkpoint() != before) or 0.0
            where = self.run.latest_checkpoint() or "the beginning"
            self._say(f"{described(result)}; again from {where} in {wait_s:.1f} s")
            if self.inbox.get(wait_s) is not None:
                return result | _stopped("while waiting to start again")

    def _attempt(self) -> dict[str, Any]:
        """Ask all hosts, and train on them once; returns and records the outcome."""
        ssh = self.config.launch.ssh
        commands = [(host, ssh_command(host, self.spec, ssh)) for host in self.hosts]
        token, token_file = secrets.token_hex(16), self.run.launch_dir / TOKEN
        token_file.write_text(token, encoding="utf-8")
        beat_s = ssh.lost_after_s / ALIVE_COUNT
        with connected(commands, beat_s=beat_s, stopped=lambda: self.inbox.received) as sessions:
            try:
                meeting = preflight(sessions, self.config, self.spec, token=token, token_file=str(token_file))
            finally:
                token_file.unlink()
            attempt, started, ended = self.run.begin_attempt(), time.time(), threading.Event()
            where = ", ".join(f"{session.host.name} ({meeting.nics[session][0]})" for session in sessions.all)
            self._say(f"{self.run.run_id}: attempt {attempt} on {where}, meeting at {meeting.address}:{meeting.port}")
            self._start(sessions, meeting, attempt)
            logs = threading.Thread(target=self._stream, args=(attempt, ended))
            if self.streams:
                logs.start()
            try:
                status, lost = self._watch(sessions)
                words = lost.last_words().rstrip(".") if lost is not None else ""
            finally:
                ended.set()
                if self.streams:
                    logs.join()
        # By now no host runs anything, and all that could have left word.
        result = outcome(status, attempt=attempt, log_dir=self.run.log_dir(attempt), started=started)
        if lost is not None and result["exit_class"] == "retry" and result["error"] in CONSEQUENCES:
            reason = f"{lost.host.name} was lost: {words}"
            result |= {"rank": None, "host": lost.host.name, "step": None, "error": None, "reason": reason}
            result |= {"exit_code": EXIT_RETRY, "exit_class": exit_class(EXIT_RETRY)}
        else:
            result = judged(result, self.run)
        result["checkpoint"] = self.run.latest_checkpoint()
        return recorded(result, self.run)

    def _start(self, sessions: Sessions, meeting: Meeting, attempt: int) -> None:
        log_dir, key = str(self.run.log_dir(attempt)), secrets.token_hex(8)
        kept: Mapping[str, str] = {name: os.environ[name] for name in SECRETS if name in os.environ}
        environment = agent_environment(variables(self.spec), timeout_s=self.config.fault.timeout_s)
        for session in sessions.all:
            nic, address = meeting.nics[session]
            command = rank_command(
                self.spec,
                attempt=attempt,
                log_dir=log_dir,
                master=meeting.address,
                port=meeting.port,
                local_address=address,
                is_first=session.number == 0,
            )
            session.say(
                "start",
                command=command,
                environment={**environment, STARTED: str(self.started), **kept},
                nic=nic if self.spec.num_nodes > 1 else None,
                log_dir=log_dir,
                log_name=f"host_{session.number:05d}.log",
                session=f"{key}-{session.number}",
                work_dir=str(self.spec.work_dir),
                world_size=self.spec.world_size,
            )

    def _watch(self, sessions: Sessions) -> tuple[int, Session | None]:
        """Wait for all hosts, and end the others when one fails; returns the status, and the host lost, if any."""
        statuses: dict[Session, int] = {}
        lost: list[Session] = []
        orders = [("end", GRACE_S), ("kill", GRACE_S + END_S), ("give up", GRACE_S + END_S + GIVE_UP_S)]
        failed_at: float | None = None
        while any(session not in statuses for session in sessions.all):
            self._pass_on(sessions)
            session, message = sessions.receive(POLL_S) or (None, None)
            if session is not None and message is None and session not in statuses:
                lost.append(session)
                statuses[session] = EXIT_RETRY
            elif session is not None and message is not None and "ended" in message:
                statuses[session] = message["ended"]
            if any(statuses.values()) and failed_at is None:
                failed_at = time.monotonic()
            while failed_at is not None and time.monotonic() > failed_at + orders[0][1]:
                order, _ = orders.pop(0)
                if order == "give up":
                    return EXIT_RETRY, next(session for session in sessions.all if session not in statuses)
                sessions.say(order, within_s=END_S)
        return int(any(statuses.values())), lost[0] if lost else None

    def _pass_on(self, sessions: Sessions) -> None:
        """Signals that have come go to all hosts, whose ranks checkpoint at the first and are killed at the second."""
        number = self.inbox.get(0.0)
        if number is not None:
            sessions.say("signal", number=int(number))

    def _stream(self, attempt: int, ended: threading.Event) -> None:
        """Print what ranks write, each line with its rank."""

        def write(line: str) -> None:
            sys.stdout.write(f"{line}\n")
            sys.stdout.flush()

        show_logs(
            self.run, write, rank=None, attempt=attempt, follow=True, active=lambda: not ended.is_set(), ask_every_s=0.0
        )

    def _say(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False)


def _stopped(when: str) -> dict[str, Any]:
    """The outcome where nothing ran when a signal came."""
    reason = f"stopped {when}"
    return {"exit_code": EXIT_INTERRUPTED, "rank": None, "reason": reason}
