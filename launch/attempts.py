"""The attempts of one ``effnet fit``: the first, those after a rollback, and restarts after failures."""

import os
import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from configs.run import (
    EXIT_DO_NOT_RETRY,
    EXIT_INTERRUPTED,
    STARTED,
    RunDirectory,
    exit_class,
    rank_errors,
)
from configs.schema import Config
from launch.inbox import SignalInbox
from launch.restarts import Restarts, failed_alike
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
    """

    config: Config
    directory: RunDirectory
    devices: int
    lock: int
    inbox: SignalInbox
    started: float
    console: Console

    def run(self, restarts: Restarts) -> dict[str, Any]:
        """Run the trainer, and again after rollbacks, and after failures as often as allowed; returns the outcome."""
        failed: int | None = None
        while True:
            checkpoint = self.directory.latest_checkpoint()
            result = self._attempt(failed)
            if result["exit_class"] != "retry" or self.inbox.received:
                return result
            if result.get("rollback"):  # the trainer bounds their number
                failed = None
                self._say(f"{result['reason']}; going back")
            else:
                progressed = self.directory.latest_checkpoint() != checkpoint
                backoff_s = restarts.next_backoff_s(progressed=progressed)
                if backoff_s is None:
                    return result
                failed = result["attempt"]
                where = self.directory.latest_checkpoint() or "the beginning"
                count = f"restart {restarts.count} of {restarts.limit} without a new checkpoint"
                self._say(f"{described(result)}; again from {where} in {backoff_s:.1f} s ({count})")
                if self.inbox.get(backoff_s) is not None:
                    reason = "stopped while waiting to start again"
                    return {**result, "exit_code": EXIT_INTERRUPTED, "reason": reason}

    def _attempt(self, failed: int | None) -> dict[str, Any]:
        """Run the trainer once, perhaps after an attempt that ``failed``; returns and records its outcome."""
        directory = self.directory
        attempt, started = directory.begin_attempt(), time.time()
        log_dir = directory.log_dir(attempt)
        arguments = ("fit", str(directory.path), f"--log-dir={log_dir}", f"--attempt={attempt}")
        environment = agent_environment(os.environ, timeout_s=self.config.fault.timeout_s)
        status = run_command(
            trainer_command(*arguments, devices=self.devices),
            devices=self.devices,
            log_dir=log_dir,
            environment={**environment, STARTED: str(self.started)},
            inherited=(self.lock,),
            inbox=self.inbox,
        )
        result = outcome(status, attempt=attempt, log_dir=log_dir, started=started)
        if failed is not None and result["exit_class"] == "retry" and not result.get("rollback"):
            result = _judged(result, directory, before=failed)
        directory.record_outcome(result)
        return result

    def _say(self, text: str) -> None:
        self.console.print(text, style="yellow", highlight=False, markup=False, soft_wrap=True)


def _judged(result: dict[str, Any], directory: RunDirectory, *, before: int) -> dict[str, Any]:
    """The outcome, with the exit code of what is not to be tried again if the attempt failed as the one before it."""
    errors, known = (rank_errors(directory.log_dir(attempt)) for attempt in (result["attempt"], before))
    alike = failed_alike(errors, known)
    if alike is None:
        return result
    code = EXIT_DO_NOT_RETRY
    reason = f"{str(alike['reason']).partition(chr(10))[0]} (attempt {before} failed at the same step in the same way)"
    where = {key: alike[key] for key in ("rank", "host", "step", "error")}
    return {**result, **where, "exit_code": code, "exit_class": exit_class(code), "reason": reason}
