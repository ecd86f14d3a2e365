"""An agent of a sweep: runs its trials one after the other on this machine, each as ``effnet fit`` would be."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY
from configs.lifeline import end_with_parent
from configs.run import RunDirectory
from configs.sweep_file import overrides_of
from launch.inbox import SignalInbox
from launch.sweeps.folder import SweepFolder, Trial, is_unfinished, read_trial, write_trial
from launch.sweeps.source import TrialSource

POLL_S = 0.2
"""Seconds between two looks at the trial, the signals and the server."""


@dataclass(frozen=True, kw_only=True)
class Agent:
    """What an agent works by.

    Attributes:
        folder: The sweep's.
        max_trials: Trials after which it ends; None is no limit.
        max_failures: Trials that may fail in a row; one of them more, and it ends.
        max_restarts: Of each trial, as for ``effnet fit``.
        quiet: Whether trials show no progress.
        console: For a person.
    """

    folder: SweepFolder
    max_trials: int | None
    max_failures: int
    max_restarts: int
    quiet: bool = False
    console: Console

    def work(self, source: TrialSource) -> int:
        """Run trials until there are no more; returns the exit code: 85 after a signal, 1 or 93 after many failures."""
        ended = failures = 0
        with SignalInbox() as inbox:
            # First what was cut off with its agent: the server does not hand it out again.
            for trial in chain(self._unfinished(), source.trials(lambda: inbox.received)):
                with self.folder.claimed(trial.trial) as run:
                    begun = read_trial(run) if run else None
                    if run is None or (begun and not is_unfinished(run, begun)):
                        continue  # another agent's
                    if begun is None:
                        write_trial(run, trial)
                    # After a signal between two trials, whichever agent starts next begins with this one.
                    code = EXIT_INTERRUPTED if inbox.received else self._run(trial, run, source, inbox)
                if inbox.received:
                    break
                ended += 1
                failures = 0 if code in (EXIT_DONE, EXIT_INTERRUPTED) else failures + 1
                if failures >= self.max_failures:
                    last = f"the last was {run.path} with exit code {code}"
                    self._say(f"error: {failures} trials in a row have failed; {last}", style="red")
                    return code if code == EXIT_DO_NOT_RETRY else EXIT_RETRY
                if ended == self.max_trials:
                    break
            if inbox.received:
                self._say(f"the sweep goes on with effnet sweep --id {self.folder.id}", style="yellow")
                return EXIT_INTERRUPTED
        return EXIT_DONE

    def _unfinished(self) -> Iterator[Trial]:
        for name in self.folder.trials():
            run = self.folder.run(name)
            trial = read_trial(run)
            if trial is not None and trial.sweep == self.folder.id.name and is_unfinished(run, trial):
                yield trial

    def _run(self, trial: Trial, run: RunDirectory, source: TrialSource, inbox: SignalInbox) -> int:
        """Train a trial to its end; returns its exit code."""
        chosen, before = " ".join(overrides_of(trial.parameters)), run.attempts
        self._say(f"{run.run_id}: {'goes on' if run.attempts else chosen}")
        write_trial(run, replace(trial, begun=True))
        child = subprocess.Popen(
            self._command(trial, run),
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C is for the agent, which passes it on
            preexec_fn=partial(end_with_parent, os.getpid()),  # safe: this process has one thread
        )
        stopped = False
        while True:
            try:
                code = child.wait(POLL_S)
                break
            except subprocess.TimeoutExpired:
                number = inbox.get(0)
                if number is None and not stopped and source.wants_to_stop():
                    stopped, number = True, signal.SIGTERM
                if number is not None:
                    child.send_signal(number)
        if not inbox.received:
            by_wandb = code == EXIT_INTERRUPTED  # which can also tell rank 0 itself
            # Else each agent would begin with what is refused, in vain.
            refused = code == EXIT_DO_NOT_RETRY and run.attempts == before
            write_trial(run, replace(trial, begun=False, stopped=by_wandb, refused=refused))
            if by_wandb:
                self._say(f"{run.run_id}: stopped by W&B")
        return code

    def _command(self, trial: Trial, run: RunDirectory) -> list[str]:
        where = self.folder.id
        own: dict[str, object] = {"runs_dir": str(self.folder.runs_dir), "run_id": run.run_id}
        if where.project is not None:
            own |= {"tracking.project": where.project, "tracking.entity": where.entity, "tracking.mode": "online"}
        overrides = [*overrides_of(trial.parameters), *(f"{key}={json.dumps(value)}" for key, value in own.items())]
        options = [f"--config={self.folder.base_file}", f"--max-restarts={self.max_restarts}"]
        options += ["--quiet"] if self.quiet else []
        return [sys.executable, "-m", "launch.cli", "fit", *options, "--", *overrides]

    def _say(self, text: str, *, style: str | None = None) -> None:
        self.console.print(text, style=style, highlight=False, markup=False)
