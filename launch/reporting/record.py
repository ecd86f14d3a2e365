"""What a run's directory says of the run; no file that is missing, half written or damaged is in the way."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from configs.files import read_json
from configs.problems import ConfigError
from configs.run import RunDirectory
from configs.schema import Config
from launch.inspection import state
from launch.reporting.series import Metrics, read_metrics

RUNNING, UNRECORDED = "running", "unrecorded"
"""Stand for the exit class of attempts that have none: at work, or ended without a word, as by a machine's end."""
Facts = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the run.

    Attributes:
        number: From 0.
        exit_class: How it ended: ``done``, ``interrupted``, ``retry``, ``do_not_retry``, `RUNNING` or `UNRECORDED`.
        started: Seconds since the epoch; None where nothing says.
        ended: The same; of an attempt without an end, when a rank last wrote to its log.
        outcome: As recorded: rank, host, step, error, reason.
        environment: As recorded: world_size, resumed_from, host, git_sha, packages.
        errors: What each rank left that ended before its time, the earliest first.
    """

    number: int
    exit_class: str
    started: float | None
    ended: float | None
    outcome: Facts
    environment: Facts
    errors: list[Facts]

    @property
    def seconds(self) -> float | None:
        """How long it took, so far."""
        return None if self.started is None or self.ended is None else max(self.ended - self.started, 0.0)

    @property
    def culprit(self) -> str:
        """The rank that ended it, with host and optimizer steps; empty where nothing says."""
        rank, host, step = (self.outcome.get(key) for key in ("rank", "host", "step"))
        parts = [f"rank {rank} on {host}"] if rank is not None else []
        return ", ".join([*parts, *([f"step {step}"] if step is not None else [])])

    @property
    def reason(self) -> str:
        """Why it ended."""
        if self.exit_class == UNRECORDED:
            return "nothing was recorded of its end: whatever started it was killed, or its machine went away"
        return str(self.outcome.get("reason") or "")


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, by its manifest; its files are not read.

    Attributes:
        name: Of its directory.
        saved: When, in seconds since the epoch.
        manifest: What it says; empty where it cannot be read.
        latest: Whether the run would go on from it.
    """

    name: str
    saved: float | None
    manifest: Facts
    latest: bool

    @property
    def size_bytes(self) -> int | None:
        """Of all its files."""
        files = _mapping(self.manifest.get("files"))
        sizes = [_mapping(file).get("bytes") for file in files.values()]
        return sum(size for size in sizes if isinstance(size, int)) if sizes else None


@dataclass(frozen=True, kw_only=True)
class Record:
    """All that a report says of a run.

    Attributes:
        run: Its directory.
        name: As the report calls it.
        state: In a line.
        metrics: Its rows.
        attempts: By number.
        rollbacks: Times that it went back to an earlier checkpoint.
        nonfinite: Steps whose loss or gradient was not finite.
        checkpoints: That are there, the oldest first.
        set_aside: Other checkpoints, with why they are not among these.
        validation: What ``effnet validate`` has found last; empty without.
        config: The resolved configuration; None where it cannot be read.
        config_fault: Why it cannot.
        uncommitted: Changes of the code that were not committed.
    """

    run: RunDirectory
    name: str
    state: str
    metrics: Metrics
    attempts: list[Attempt]
    rollbacks: list[Facts] = field(default_factory=list)
    nonfinite: list[Facts] = field(default_factory=list)
    checkpoints: list[Checkpoint] = field(default_factory=list)
    set_aside: list[tuple[str, str]] = field(default_factory=list)
    validation: Facts = field(default_factory=dict)
    config: Config | None = None
    config_fault: str = ""
    uncommitted: str = ""


def read_record(run: RunDirectory, *, name: str | None = None) -> Record:
    """Read all of it, once; it is called by its id if no name is given."""
    now = _state(run)
    config, fault = _config(run)
    return Record(
        run=run,
        name=name or run.run_id,
        state=now,
        metrics=read_metrics(run.metrics_file),
        attempts=_attempts(run, running=now.startswith(RUNNING)),
        rollbacks=_mappings(read_json(run.rollbacks_file).get("rollbacks")),
        nonfinite=_mappings(_json_lines(run.nonfinite_file)),
        checkpoints=_checkpoints(run),
        set_aside=_set_aside(run),
        validation=read_json(run.path / "validation.json"),
        config=config,
        config_fault=fault,
        uncommitted=_text(run.path / "uncommitted.diff"),
    )


def _state(run: RunDirectory) -> str:
    try:
        return state(run)
    except (ValueError, LookupError, TypeError, OSError) as error:
        return f"unknown ({type(error).__name__}: {error})"


def _config(run: RunDirectory) -> tuple[Config | None, str]:
    try:
        return run.load_config(), ""
    except ConfigError as error:
        return None, str(error)


def _attempts(run: RunDirectory, *, running: bool) -> list[Attempt]:
    outcomes = _by_attempt(read_json(run.outcome_file).get("attempts"))
    environments = _by_attempt(_json(run.environment_file))
    numbers = sorted({*outcomes, *environments, *range(run.attempts)})
    return [
        _attempt(run, number, outcomes.get(number), environments.get(number, {}), running=running and number == last)
        for last in numbers[-1:]
        for number in numbers
    ]


def _attempt(run: RunDirectory, number: int, outcome: Facts | None, environment: Facts, *, running: bool) -> Attempt:
    known, log_dir = outcome or {}, run.log_dir(number)
    errors = [error for error in map(read_json, sorted(log_dir.glob("rank_*.error.json"))) if error]
    written = [time for time in map(_modified, log_dir.glob("*.log")) if time is not None]
    started = _seconds(known.get("started"))
    return Attempt(
        number=number,
        exit_class=str(known.get("exit_class", UNRECORDED)) if outcome else RUNNING if running else UNRECORDED,
        started=_seconds(environment.get("started")) if started is None else started,
        ended=_seconds(known.get("ended")) if outcome else max(written, default=None),
        outcome=known,
        environment=environment,
        errors=sorted(errors, key=lambda error: _seconds(error.get("time")) or 0.0),
    )


def _checkpoints(run: RunDirectory) -> list[Checkpoint]:
    latest = _text(run.checkpoints / "LATEST").strip()
    found = (path for path in run.checkpoints.glob("step-*") if path.name.removeprefix("step-").isdecimal())
    return [
        Checkpoint(
            name=path.name,
            saved=_modified(path / "manifest.json"),
            manifest=read_json(path / "manifest.json"),
            latest=path.name == latest,
        )
        for path in sorted(found)
    ]


def _set_aside(run: RunDirectory) -> list[tuple[str, str]]:
    reasons = sorted(run.checkpoints.glob("*/step-*/reason.txt"))
    return [(str(file.parent.relative_to(run.checkpoints)), _text(file).strip()) for file in reasons]


def _by_attempt(entries: Any) -> dict[int, Facts]:
    return {entry["attempt"]: entry for entry in _mappings(entries) if isinstance(entry.get("attempt"), int)}


def _mappings(entries: Any) -> list[Facts]:
    return [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []


def _mapping(value: Any) -> Facts:
    return value if isinstance(value, dict) else {}


def _json(file: Path) -> Any:
    return _loaded(_text(file))


def _json_lines(file: Path) -> list[Any]:
    return [_loaded(line) for line in _text(file).splitlines()]


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _modified(file: Path) -> float | None:
    try:
        return file.stat().st_mtime
    except OSError:
        return None


def _seconds(value: Any) -> float | None:
    """A time as a number or as ISO 8601 has it, in seconds since the epoch."""
    if isinstance(value, int | float):
        return float(value)
    try:
        return datetime.fromisoformat(value).timestamp()
    except (TypeError, ValueError):
        return None


def events(record: Record) -> Iterator[tuple[float, str, str]]:
    """(seconds since the epoch, kind, in words) of what happened between starts and ends."""
    for entry in record.rollbacks:
        time = _seconds(entry.get("time"))
        if time is not None:
            yield time, "rollback", rollback_in_words(entry)
    for entry in record.nonfinite:
        time = _seconds(entry.get("time"))
        if time is not None:
            yield time, "nonfinite", f"step {entry.get('step')}: the {entry.get('what')} was not finite"
    for checkpoint in record.checkpoints:
        if checkpoint.saved is not None:
            yield checkpoint.saved, "checkpoint", checkpoint.name


def rollback_in_words(entry: Facts) -> str:
    """Why and to where a run went back."""
    before = f"back to a checkpoint before step {entry.get('before_step')}"
    if "next_batch" in entry:
        return f"{entry.get('reason')}: {before}, on with global batch {entry['next_batch']}"
    return f"a user went {before}: resume.checkpoint={entry.get('resume')}"
