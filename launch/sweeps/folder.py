"""A sweep on disk: its folder, and the run directories of its trials. What agents know of one another is in these."""

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.exit_codes import exit_class
from configs.files import read_json, write_atomically
from configs.layers import find_file
from configs.load import dump_yaml, leaves, load_config
from configs.problems import ConfigError, Problem, shown
from configs.run import RunDirectory
from configs.schema import Config
from configs.sweep_file import Sweep

LOCAL = "local-"
"""Begins the id of a sweep that no server knows."""
AGENT_LOCK = "agent.lock"
"""In a trial's run directory: held by the agent that is at work on it."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
"""Of a sweep or a trial, as W&B makes them; folders have these names."""


@dataclass(frozen=True, kw_only=True)
class SweepId:
    """Where W&B has a sweep; without entity and project where it has not.

    Attributes:
        name: The id alone, which W&B makes.
    """

    name: str
    entity: str | None = None
    project: str | None = None

    def __str__(self) -> str:
        return "/".join(part for part in (self.entity, self.project, self.name) if part)

    @classmethod
    def parse(cls, text: str) -> "SweepId":
        """From ENTITY/PROJECT/ID, or the id of a sweep without a server.

        Raises:
            ConfigError: If it is neither.
        """
        parts = text.split("/")
        if len(parts) == 3 and all(parts) and NAME.fullmatch(parts[2]):
            return cls(name=parts[2], entity=parts[0], project=parts[1])
        if text.startswith(LOCAL) and NAME.fullmatch(text):
            return cls(name=text)
        accepted = f"ENTITY/PROJECT/ID, as W&B's page of the sweep says, or {LOCAL}…"
        raise ConfigError([Problem(key="--id", received=shown(text), accepted=accepted)])


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of a sweep.

    Attributes:
        sweep: Its sweep's id alone.
        trial: W&B's id of the run.
        parameters: What the sweep has chosen, by setting.
        stopped: Whether W&B has ended it before its time: it is not gone on with.
        refused: Whether its configuration was refused before any attempt: nor is this one.
        begun: Whether an agent has begun it, and has not seen it end by itself: it may yet have had restarts to come.
    """

    sweep: str
    trial: str
    parameters: Mapping[str, Any]
    stopped: bool = False
    refused: bool = False
    begun: bool = False


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """``RUNS_DIR/sweep-ID``. Creating one touches nothing on disk."""

    runs_dir: Path
    id: SweepId

    @property
    def path(self) -> Path:
        """The folder."""
        return self.runs_dir / f"sweep-{self.id.name}"

    @property
    def base_file(self) -> Path:
        """The configuration of all trials, without what the sweep chooses."""
        return self.path / "base.yaml"

    def create(self, sweep: Sweep | None, config: Config) -> None:
        """Write what agents read, unless it is there.

        Raises:
            ConfigError: If the folder is another sweep's, or has another configuration, or cannot be written.
        """
        facts = self.path / "sweep.json"
        text = json.dumps({"id": str(self.id), "file": sweep and dict(sweep.document)}, indent=2) + "\n"
        try:
            (self.path / "launch").mkdir(parents=True, exist_ok=True)
            known = read_json(facts).get("id", str(self.id))
            if not facts.exists():
                write_atomically(facts, text)
            if not self.base_file.exists():
                write_atomically(self.base_file, dump_yaml(config))
        except OSError as error:
            accepted = f"a folder in which {self.path} can be written ({error.strerror})"
            raise ConfigError([Problem(key="runs_dir", received=str(self.runs_dir), accepted=accepted)]) from None
        if self.base_file.exists() and known == str(self.id):
            self._check_base(config)
        if known != str(self.id):
            accepted = f"another runs_dir: {self.path} is that of {known}"
            raise ConfigError([Problem(key="runs_dir", received=str(self.runs_dir), accepted=accepted)])

    def _check_base(self, config: Config) -> None:
        """See that settings which are not part of the sweep's id, such as devices, are not passed over without a word.

        Raises:
            ConfigError: If one differs from what trials read.
        """
        kept, given = leaves(load_config([str(self.base_file)]).config), leaves(config)
        accepted = f"as in {self.base_file}, which all trials read: effnet sweep --id {self.id} goes on with it"
        problems = [
            Problem(key=key, received=shown(value), accepted=f"{shown(kept[key])}, {accepted}")
            for key, value in given.items()
            if value != kept[key]
        ]
        if problems:
            raise ConfigError(problems)

    def sweep(self) -> Sweep | None:
        """The sweep file as it was registered; None if it was registered elsewhere."""
        document = read_json(self.path / "sweep.json").get("file")
        return Sweep(document=document) if document else None

    def run(self, trial: str) -> RunDirectory:
        """The run directory of a trial."""
        return RunDirectory(self.runs_dir / f"{self.id.name}-{trial}")

    @contextmanager
    def claimed(self, trial: str) -> Iterator[RunDirectory | None]:
        """Keep other agents from a trial; None if one of them has it."""
        run = self.run(trial)
        run.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(run.path / AGENT_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        try:
            yield run if held else None
        finally:
            os.close(descriptor)

    def trials(self) -> list[str]:
        """Names of all trials that have begun here, in order."""
        prefix = f"{self.id.name}-"
        return sorted(file.parent.name.removeprefix(prefix) for file in self.runs_dir.glob(f"{prefix}*/trial.json"))


def read_trial(run: RunDirectory) -> Trial | None:
    """The trial that a run is; None if it is none."""
    known = read_json(run.trial_file)
    return Trial(**known) if known else None


def write_trial(run: RunDirectory, trial: Trial) -> None:
    """Say which trial a run is; its W&B run is the one that the sweep has made for it."""
    run.wandb_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(run.wandb_dir / "wandb_id", trial.trial)
    write_atomically(run.trial_file, json.dumps(asdict(trial), indent=2, ensure_ascii=False) + "\n")


def is_unfinished(run: RunDirectory, trial: Trial) -> bool:
    """Whether a trial was cut off: it has checkpointed after a signal, or ended with its agent, without a word."""
    past = run.outcomes()
    if trial.stopped or trial.refused:
        return False
    if not past or past[-1]["attempt"] < run.attempts - 1:
        return True
    ended = exit_class(past[-1]["exit_code"])
    return ended == "interrupted" or (trial.begun and ended == "retry")


def find_folder(sweep_id: SweepId, runs_dir: Path) -> SweepFolder | None:
    """A sweep's folder, if it has one here."""
    folder = SweepFolder(runs_dir=runs_dir, id=sweep_id)
    return folder if find_file(str(folder.base_file)) else None
