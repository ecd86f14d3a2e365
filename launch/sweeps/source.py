"""Where an agent's trials come from: W&B's server, through a process that speaks with it, or a search of its own."""

import contextlib
import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from types import TracebackType
from typing import Any, Protocol

from configs.lifeline import end_with_parent
from configs.problems import ConfigError, Problem
from configs.sweep_file import Sweep
from launch.sweeps.folder import SweepFolder, SweepId, Trial
from launch.sweeps.search import number_of_trials, parameters_of

SPEAKER = [sys.executable, "-m", "trainer.sweep_server"]
TIMEOUT_S = 180


class TrialSource(Protocol):
    """Hands out trials, one at a time."""

    def trials(self) -> Iterator[Trial]:
        """The next trial each time; the one before has ended by then."""

    def wants_to_stop(self) -> bool:
        """Whether the trial that was handed out last is to end before its time."""


class LocalSearch:
    """Grid or random search by the agents themselves, which take the next trial that nobody has begun."""

    def __init__(self, sweep: Sweep, folder: SweepFolder) -> None:
        self._sweep, self._folder = sweep, folder
        self._count = number_of_trials(sweep)

    def trials(self) -> Iterator[Trial]:
        """Those that no agent has begun."""
        name = self._folder.id.name
        for index in range(self._count):
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
        self._speaker: subprocess.Popen[str] | None = None

    def __enter__(self) -> "WandbSource":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._speaker is not None:
            self._speaker.kill()
            self._speaker.communicate()

    def trials(self) -> Iterator[Trial]:
        """What W&B hands out.

        Raises:
            ConfigError: If it does not answer, or knows no such sweep.
        """
        self._speaker = speaker = self._begin()
        assert speaker.stdin is not None
        while (message := self._next()) is not None:
            if "trial" in message:
                yield Trial(sweep=self._sweep.name, trial=message["trial"], parameters=message["parameters"])
                with contextlib.suppress(BrokenPipeError):
                    speaker.stdin.write("ended\n")
                    speaker.stdin.flush()
        if speaker.wait(TIMEOUT_S):
            raise _no_answer(f"its agent ended with status {speaker.returncode}, see {self._log}")

    def wants_to_stop(self) -> bool:
        """Whether W&B has said so since the last look."""
        if self._speaker is None:  # with what was left behind: no trial was handed out yet
            return False
        assert self._speaker.stdout is not None
        if not select.select([self._speaker.stdout], [], [], 0)[0]:
            return False
        message = self._next()
        return message is not None and "stop" in message

    def _begin(self) -> "subprocess.Popen[str]":
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [*SPEAKER, "agent", *self._options],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self._environment,
                start_new_session=True,  # Ctrl-C is for the agent
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: no other thread is at work here
            )

    def _next(self) -> dict[str, Any] | None:
        assert self._speaker is not None
        assert self._speaker.stdout is not None
        line = self._speaker.stdout.readline()
        message: dict[str, Any] | None = json.loads(line) if line else None
        if message and "error" in message:
            raise _no_answer(message["error"])
        return message


def register(sweep: Sweep, *, entity: str | None, project: str) -> tuple[SweepId, str]:
    """Have W&B make a sweep; returns its id and the address of its page.

    Raises:
        ConfigError: If W&B does not take it.
    """
    options = [f"--project={project}", *([f"--entity={entity}"] if entity else [])]
    given = json.dumps(dict(sweep.document))
    done = subprocess.run(
        [*SPEAKER, "register", *options], input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    answer = json.loads(done.stdout or "{}")
    if done.returncode or "error" in answer:
        raise _no_answer(answer.get("error") or done.stderr.strip()[-500:])
    return SweepId(name=answer["id"], entity=answer["entity"], project=answer["project"]), answer["url"]


def _no_answer(received: str) -> ConfigError:
    accepted = (
        "a W&B server that takes it (wandb login, WANDB_BASE_URL), or tracking.mode=offline to search without one"
    )
    return ConfigError([Problem(key="W&B", received=received, accepted=accepted)])
