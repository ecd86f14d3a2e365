"""Where an agent's trials come from: W&B's server, through a process that speaks with it, or a search of its own."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from configs.lifeline import end_with_parent
from configs.problems import ConfigError, Problem, UnreachableError, shown
from configs.sweep_file import Sweep, refused_parameters
from launch.sweeps.folder import NAME, SweepFolder, SweepId, Trial
from launch.sweeps.search import number_of_trials, parameters_of

SPEAKER = [sys.executable, "-m", "trainer.sweep_server"]
TIMEOUT_S = 180
POLL_S = 0.2
"""Seconds between two looks whether the agent is to end, while W&B has no trial to hand out."""


class TrialSource(Protocol):
    """Hands out trials, one at a time."""

    def trials(self, given_up: Callable[[], bool]) -> Iterator[Trial]:
        """The next trial each time, until ``given_up``; the one before has ended by then."""

    def wants_to_stop(self) -> bool:
        """Whether the trial that was handed out last is to end before its time."""


class LocalSearch:
    """Grid or random search by the agents themselves, which take the next trial that nobody has begun."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self._sweep, self._folder = sweep, folder
        self._count = number_of_trials(sweep)

    def trials(self, given_up: Callable[[], bool]) -> Iterator[Trial]:
        """Those that no agent has begun."""
        name = self._folder.id.name
        for index in range(self._count):
            if given_up():
                return
            if not self._folder.run(f"{index:04d}").trial_file.exists():
                parameters = parameters_of(self._sweep, index, seed=name)
                yield Trial(sweep=name, trial=f"{index:04d}", parameters=parameters)

    def wants_to_stop(self) -> bool:
        """Never."""
        return False


class WandbSource:
    """An agent of W&B's, in a process of its own, because the launcher imports no ``wandb``."""

    def __init__(self, folder: SweepFolder) -> None:
        sweep = folder.id
        options = [f"--id={sweep.name}", f"--entity={sweep.entity}", f"--project={sweep.project}"]
        self._log = folder.path / "launch" / f"agent-{os.uname().nodename}-{os.getpid()}.log"
        self._sweep = sweep
        self._options = options
        self._environment = {**os.environ, "WANDB_DIR": str((folder.path / "launch").absolute())}
        self._speaker: subprocess.Popen[bytes] | None = None
        self._unread = b""
        self._over = False
        self._kept: list[dict[str, Any]] = []

    def __enter__(self) -> "WandbSource":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._speaker is not None:
            self._speaker.kill()
            self._speaker.communicate()

    def trials(self, given_up: Callable[[], bool]) -> Iterator[Trial]:
        """What W&B hands out.

        Raises:
            ConfigError: If it says no, knows no such sweep, or hands out what is no trial.
            UnreachableError: If W&B's agent ends without a word.
        """
        self._speaker = speaker = self._begin()
        assert speaker.stdin is not None
        while (message := self._next(given_up)) is not None:
            if "error" in message:
                raise _no_answer(message["error"])
            if "trial" in message:
                yield _checked(Trial(sweep=self._sweep.name, trial=message["trial"], parameters=message["parameters"]))
                with contextlib.suppress(BrokenPipeError):
                    speaker.stdin.write(b"ended\n")
                    speaker.stdin.flush()
        if given_up():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            if speaker.wait(TIMEOUT_S):
                raise UnreachableError(f"W&B's agent ended with status {speaker.returncode}, see {self._log}")

    def wants_to_stop(self) -> bool:
        """Whether W&B has said so since the last look. Its errors are for when the trial has ended."""
        if self._speaker is None:  # with what was left behind: no trial was handed out yet
            return False
        if not self._heard(0) or self._over:
            return False
        message = self._read()
        if "stop" not in message:
            self._kept.append(message)
        return "stop" in message

    def _begin(self) -> "subprocess.Popen[bytes]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*SPEAKER, "agent", *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the agent
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: no other thread is at work here
            )

    def _next(self, given_up: Callable[[], bool]) -> dict[str, Any] | None:
        """What it says next; None where it has ended, or the agent is to."""
        if self._kept:
            return self._kept.pop(0)
        while not self._heard(POLL_S):  # a signal alone ends no read
            if given_up():
                return None
        return None if self._over else self._read()

    def _heard(self, timeout_s: float) -> bool:
        """Whether there is a line, or the end, within a time."""
        assert self._speaker is not None
        assert self._speaker.stdout is not None
        if b"\n" not in self._unread and select.select([self._speaker.stdout], [], [], timeout_s)[0]:
            come = os.read(self._speaker.stdout.fileno(), 1 << 16)
            self._unread += come
            self._over = not come
        return self._over or b"\n" in self._unread

    def _read(self) -> dict[str, Any]:
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message


def _checked(trial: Trial) -> Trial:
    """A trial whose name stays in the folder of runs, and that has settings of training alone.

    Raises:
        ConfigError: If it is none: what a server says becomes a path and a command line.
    """
    problems = refused_parameters(trial.parameters)
    if not NAME.fullmatch(trial.trial):
        problems.append(Problem(key="trial", received=shown(trial.trial), accepted="letters, digits, - and _"))
    if problems:
        raise ConfigError(problems)
    return trial


def register(sweep: Sweep, *, entity: str | None, project: str) -> tuple[SweepId, str]:
    """Have W&B make a sweep; returns its id and the address of its page.

    Raises:
        ConfigError: If W&B does not take it.
    """
    options = [f"--project={project}", *([f"--entity={entity}"] if entity else [])]
    given = json.dumps(dict(sweep.document))
    command = [*SPEAKER, "register", *options]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        raise _no_answer(f"no answer within {TIMEOUT_S} s") from None
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "error" in answer:
        raise _no_answer(answer.get("error") or done.stderr.strip()[-500:])
    if not NAME.fullmatch(str(answer["id"])):
        raise _no_answer(f"{shown(answer['id'])} as the sweep's id")
    return SweepId(name=answer["id"], entity=answer["entity"], project=answer["project"]), answer["url"]


def _no_answer(received: str) -> ConfigError:
    accepted = (
        "a W&B server that takes it (wandb login, WANDB_BASE_URL), or tracking.mode=offline to search without one"
    )
    return ConfigError([Problem(key="W&B", received=received, accepted=accepted)])
