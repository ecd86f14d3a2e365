"""The attempts of one ``effnet fit``: the first, those after a rollback, and restarts after failures."""

import os
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from configs.exit_codes import EXIT_INTERRUPTED
from configs.run import STARTED, RunDirectory
from configs.schema import Config
from launch.disk import recorded
from launch.inbox import SignalInbox
from launch.restarts import Restarts, judged
from launch.supervisor import agent_environment, described, outcome, run_command, trainer_command


@dataclass(frozen=True, kw_only=True)
class Attempts:
    """What all attempts have in common.

    Attributes:
        config: The run's.
        directory: Its directory.
        devices: Processes to start.
        lock: Descriptor of the run's lock.
        inbox: Takes the signals, between two attempts too.
        started: When the launcher began, in seconds since the epoch.
        console: For a person.
        quiet: Whether the trainer shows no progress.
    """

    config: Config
    directory: RunDirectory
    devices: int
    lock: int
    inbox: SignalInbox
    started: float
    console: Console
    quiet: bool = False

    def run(self, restarts: Restarts) -> dict[str, Any]:
        """Run the trainer, and again after rollbacks, and after failures as often as allowed; returns the outcome."""
        while True:
            checkpoint = self.directory.latest_checkpoint()
            result = self._attempt()
            if result["exit_class"] != "retry" or self.inbox.received:
                return result
            if result.get("rollback"):  # the trainer bounds their number
                self._say(f"{result['reason']}; going back")
            else:
                progressed = self.directory.latest_checkpoint() != checkpoint
                backoff_s = restarts.next_backoff_s(progressed=progressed)
                if backoff_s is None:
                    return result
                where = self.directory.latest_checkpoint() or "the beginning"
                count = f"restart {restarts.count} of {restarts.limit} without a new checkpoint"
                self._say(f"{described(result)}; again from {where} in {backoff_s:.1f} s ({count})")
                if self.inbox.get(backoff_s) is not None:
                    reason = "stopped while waiting to start again"
                    return {**result, "exit_code": EXIT_INTERRUPTED, "reason": reason}

    def _attempt(self) -> dict[str, Any]:
        """Run the trainer once; returns and records its outcome."""
        directory = self.directory
        attempt, started = directory.begin_attempt(), time.time()
        log_dir = directory.log_dir(attempt)
        arguments = ["fit", str(directory.path), f"--log-dir={log_dir}", f"--attempt={attempt}"]
        arguments += ["--quiet"] if self.quiet else []
        environment = agent_environment(os.environ, timeout_s=self.config.fault.timeout_s)
        status = run_command(
            trainer_command(*arguments, devices=self.devices),
            devices=self.devices,
            log_dir=log_dir,
            environment={**environment, STARTED: str(self.started)},
            inherited=(self.lock,),
            inbox=self.inbox,
        )
        result = judged(outcome(status, attempt=attempt, log_dir=log_dir, started=started), directory)
        return recorded(result, directory)

    def _say(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False)
