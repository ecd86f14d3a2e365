"""A run's directory: what launchers and trainer agree on, all that is left of a job."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from configs.changes import Change, changes, identity, refusals
from configs.files import read_json, write_atomically
from configs.load import dump_yaml, load_config
from configs.problems import ConfigError, Problem, shown
from configs.schema import Config

STARTED: Final = "EFFNET_STARTED"
"""Environment variable: when the launcher began, in seconds since the epoch."""
PREFLIGHT: Final = "EFFNET_PREFLIGHT"
"""Environment variable: where it is set, ranks examine their nodes before they train."""
QUIET: Final = "EFFNET_QUIET"
"""Environment variable: where it is set, rank 0 prints no progress."""
GRACE: Final = "EFFNET_GRACE_S"
"""Environment variable: seconds from a signal until the scheduler kills."""


def config_hash(config: Config) -> str:
    """SHA-256 of the experiment, in hex; free of hardware, logging and paths of the run."""
    return hashlib.sha256(json.dumps(identity(config), sort_keys=True).encode()).hexdigest()


def with_absolute_resume(config: Config, folder: Path) -> Config:
    """The configuration, with the checkpoint that ``resume`` names where it lies as seen from ``folder``.

    Later attempts, which go on from there too, may be started in another one.
    """
    wanted = config.resume.checkpoint
    if wanted in ("auto", "never"):
        return config
    path = str(folder.absolute() / Path(wanted).expanduser())
    return config.model_copy(update={"resume": config.resume.model_copy(update={"checkpoint": path})})


@dataclass(frozen=True)
class RunDirectory:
    """Names of all that a run keeps below ``path``. Creating one touches nothing on disk."""

    path: Path

    @classmethod
    def of(cls, config: Config) -> "RunDirectory":
        """The directory that a configuration's run has, whether it exists or not."""
        return cls(Path(config.runs_dir).expanduser() / (config.run_id or f"{config.name}-{config_hash(config)[:8]}"))

    @classmethod
    def find(cls, run: str, runs_dir: str = "runs") -> "RunDirectory":
        """A run by path, id, or the beginning of an id (the newest of several).

        Raises:
            ConfigError: If there is no such run.
        """
        if (Path(run) / "config.yaml").is_file():
            return cls(Path(run))
        known = [file.parent for file in Path(runs_dir).glob("*/config.yaml")]
        found = [path for path in known if run and path.name.startswith(run)]
        if not found:
            names = ", ".join(sorted(path.name for path in known)) or "none"
            accepted = f"a run in {runs_dir}/ ({names}), or its path"
            raise ConfigError([Problem(key="RUN", received=run, accepted=accepted)])
        return cls(max(found, key=lambda path: (path.name == run, path.stat().st_mtime)))

    @property
    def run_id(self) -> str:
        """Name of the run."""
        return self.path.name

    @property
    def config_file(self) -> Path:
        """The resolved configuration; the job reads nothing else."""
        return self.path / "config.yaml"

    @property
    def origins_file(self) -> Path:
        """Where each setting that is not a default came from."""
        return self.path / "origins.json"

    @property
    def environment_file(self) -> Path:
        """Versions, hosts, git state and command line, per attempt."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Directory of checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        """Metrics of all attempts, a row a step."""
        return self.path / "metrics.csv"

    @property
    def wandb_dir(self) -> Path:
        """W&B's own files."""
        return self.path / "wandb"

    @property
    def lock_file(self) -> Path:
        """Held by the launcher that is at work on the run, and by what it has started."""
        return self.path / "lock"

    @property
    def outcome_file(self) -> Path:
        """How each attempt ended."""
        return self.path / "outcome.json"

    @property
    def preflight_file(self) -> Path:
        """What the last preflight found."""
        return self.path / "preflight.json"

    @property
    def trial_file(self) -> Path:
        """Of which sweep the run is a trial, with which parameters; only there if it is one."""
        return self.path / "trial.json"

    @property
    def nonfinite_file(self) -> Path:
        """Steps whose loss or gradient was not finite, with the samples: a line of JSON each."""
        return self.path / "nonfinite.jsonl"

    @property
    def rollbacks_file(self) -> Path:
        """Where the run went back to an earlier checkpoint, and past which data."""
        return self.path / "rollbacks.json"

    @property
    def launch_dir(self) -> Path:
        """What launchers rendered and submitted, and the code that the jobs run."""
        return self.path / "launch"

    @property
    def attempts(self) -> int:
        """Attempts begun so far: one more than the last one's number."""
        found = [path.name.removeprefix("attempt-") for path in (self.path / "logs").glob("attempt-*")]
        return max((int(number) for number in found if number.isdecimal()), default=-1) + 1

    def latest_checkpoint(self) -> str | None:
        """Name of the newest checkpoint, ``step-…``; None if there is none."""
        file = self.checkpoints / "LATEST"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    def log_dir(self, attempt: int) -> Path:
        """Folder of the logs of all ranks."""
        return self.path / "logs" / f"attempt-{attempt:02d}"

    def load_config(self) -> Config:
        """The frozen configuration.

        Raises:
            ConfigError: If the file does not hold a valid one.
        """
        return load_config([str(self.config_file)]).config

    def changes(self, config: Config) -> list[Change]:
        """Settings that differ from those of the checkpoint that an attempt would go on from; none without one."""
        start = self.start(config)
        if start is None or not self.config_file.exists():
            return []
        saved = read_json(start / "manifest.json").get("config")
        return changes(saved if isinstance(saved, dict) else self.load_config().model_dump(mode="json"), config)

    def start(self, config: Config) -> Path | None:
        """The checkpoint that an attempt with ``config`` would go on from, if all verify; None if it begins anew."""
        wanted = config.resume.checkpoint
        found = sorted(filter(_has_its_name, self.checkpoints.glob("step-*")), reverse=True)
        if wanted in ("auto", "never"):
            return found[0] if found else None
        since = (path for path in found if read_json(path / "manifest.json").get("resume") == wanted)
        return next(since, Path(wanted))

    def goes_back(self, config: Config) -> bool:
        """Whether an attempt with ``config`` would begin at a checkpoint before the newest, as a user wants it."""
        start, newest = self.start(config), max(filter(_has_its_name, self.checkpoints.glob("step-*")), default=None)
        return start is not None and newest is not None and start.resolve() != newest.resolve()

    def check(self, config: Config) -> None:
        """See that an attempt with ``config`` would go on with the same experiment, or may change it.

        Raises:
            ConfigError: If the run has a checkpoint of another experiment: its steps would no longer mean the same.
                Also with ``resume=never``, if it has any.
        """
        problems = refusals(self.changes(config), run_id=self.run_id, allow=config.resume.allow_changes)
        newest = max(filter(_has_its_name, self.checkpoints.glob("step-*")), default=None)
        if config.resume.checkpoint == "never" and newest is not None:
            accepted = f"auto, or another run_id: {newest} exists"
            problems.append(Problem(key="resume.checkpoint", received="never", accepted=accepted))
        if problems:
            raise ConfigError(problems)

    def create(self) -> None:
        """Make the directory, if it is not there.

        Raises:
            ConfigError: If it cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.lock_file.touch()
        except OSError as error:
            accepted = f"a folder in which {self.path} can be written ({error.strerror})"
            raise ConfigError(
                [Problem(key="runs_dir", received=shown(str(self.path.parent)), accepted=accepted)]
            ) from None

    def freeze(self, config: Config) -> None:
        """Write the configuration that the next attempt reads.

        Raises:
            ConfigError: As `check` and `create` do.
        """
        self.check(config)
        self.create()
        write_atomically(self.config_file, dump_yaml(config))

    def keep_origins(self, origins: Mapping[str, str]) -> None:
        """Write where each setting came from; of those that came from the frozen configuration, where that had it."""
        earlier, frozen = read_json(self.origins_file), f"{self.config_file.name}:"
        kept = {key: earlier.get(key) if found.startswith(frozen) else found for key, found in origins.items()}
        known = {key: origin for key, origin in kept.items() if origin is not None}
        write_atomically(self.origins_file, json.dumps(known, indent=2) + "\n")

    def wandb_id(self) -> str:
        """The W&B id, made once per run and kept in the run directory."""
        file = self.wandb_dir / "wandb_id"
        if not file.exists():
            self.wandb_dir.mkdir(parents=True, exist_ok=True)
            write_atomically(file, os.urandom(4).hex())
        return file.read_text(encoding="utf-8").strip()

    @property
    def cancelled_file(self) -> Path:
        """Where it is, jobs of the run do not go back into the queue, until the run is submitted again."""
        return self.launch_dir / "cancelled"

    def keep_from_queue(self) -> None:
        """A person has ended the run: let its jobs not go back into the queue when they have checkpointed."""
        if self.launch_dir.exists():
            self.cancelled_file.touch()

    @property
    def wandb_url_file(self) -> Path:
        """Where W&B shows the run, once it has been online."""
        return self.wandb_dir / "url"

    def begin_attempt(self) -> int:
        """Make the log folder of a new attempt and return its number, from 0."""
        attempt = self.attempts
        self.log_dir(attempt).mkdir(parents=True)
        return attempt

    def outcomes(self) -> list[dict[str, Any]]:
        """How the attempts ended, oldest first."""
        if not self.outcome_file.exists():
            return []
        attempts: list[dict[str, Any]] = json.loads(self.outcome_file.read_text(encoding="utf-8"))["attempts"]
        return attempts

    def record_outcome(self, outcome: Mapping[str, Any]) -> None:
        """Add an attempt's outcome, replacing one of the same number."""
        attempts = [known for known in self.outcomes() if known["attempt"] != outcome["attempt"]]
        write_atomically(self.outcome_file, json.dumps({"attempts": [*attempts, dict(outcome)]}, indent=2) + "\n")


def _has_its_name(checkpoint: Path) -> bool:
    return checkpoint.name.removeprefix("step-").isdecimal()
