"""What W&B has of a run beside its rows: settings and where they come from, code, machine, data, how attempts ended."""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from html import escape
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from configs.files import read_json, write_atomically
from configs.run import RunDirectory, config_hash
from configs.schema import Config
from trainer.logs import logger
from trainer.wandb_logger import SafeWandbLogger

COLUMNS = ("attempt", "ended_as", "rank", "host", "step", "error", "reason", "started", "ended")
"""Of the table of attempts; times are UTC."""
ENDS = {"interrupted": "preempted or stopped", "retry": "failed", "do_not_retry": "failed for good", "done": "done"}
ROLLED_BACK = "rolled back"
HASHES = {"train_index": "index", "val_index": "val_index"}
"""Of the shards, under the names that a checkpoint's position has for them."""


class RunFacts(Callback):
    """Tells W&B when an attempt begins. Of no rank but 0."""

    def __init__(self, config: Config, run: RunDirectory, *, attempt: int) -> None:
        self._config = config
        self._run = run
        self._attempt = attempt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the run's config and summary, log the attempts so far, and say so where the last one failed."""
        for tracker in trainer.loggers:
            if isinstance(tracker, SafeWandbLogger) and trainer.is_global_zero:
                self._tell(tracker, trainer)

    def _tell(self, tracker: SafeWandbLogger, trainer: Trainer) -> None:
        if tracker.url is not None:
            logger.info("W&B: %s", tracker.url)
            with suppress(OSError):  # a full disk, of which the saves have more to say
                write_atomically(self._run.wandb_url_file, tracker.url + "\n")
        past = [each for each in self._run.outcomes() if each["attempt"] < self._attempt]
        tracker.log_hyperparams({"run": self._facts(trainer), "origins": read_json(self._run.origins_file)})
        tracker.summarise(counts(past))
        if past:
            tracker.log_page("events/attempts", table(past), trainer.global_step)
        diff = self._run.path / "uncommitted.diff"
        if diff.exists():
            tracker.keep_file(diff)
        if past and ended_as(past[-1]) == "failed":
            text = f"{self._run.run_id}: attempt {self._attempt} goes on after step {trainer.global_step}. Before: "
            tracker.alert("started again after a failure", text + described(past[-1]))

    def _facts(self, trainer: Trainer) -> dict[str, Any]:
        position = trainer.datamodule.position(trainer.global_step)  # type: ignore[attr-defined]
        hashes = {f"{name}_hash": position[f"{key}_hash"] for name, key in HASHES.items()}
        return {"run_id": self._run.run_id, "config_hash": config_hash(self._config), **hashes, **self._environment()}

    def _environment(self) -> dict[str, Any]:
        """This attempt's entry in ``environment.json``."""
        file = self._run.environment_file
        entries = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        return next((dict(entry) for entry in reversed(entries) if entry["attempt"] == self._attempt), {})


def ended_as(outcome: Mapping[str, Any]) -> str:
    """In a word or three."""
    return ROLLED_BACK if outcome.get("rollback") else ENDS.get(outcome["exit_class"], outcome["exit_class"])


def described(outcome: Mapping[str, Any]) -> str:
    """The rank that was first to fail, its host and step, and its error."""
    known = {key: outcome.get(key) for key in ("rank", "host", "step")}
    where = ", ".join(f"{key} {value}" for key, value in known.items() if value is not None)
    return f"{where}: {outcome['reason']}" if where else str(outcome["reason"])


def table(outcomes: Sequence[Mapping[str, Any]]) -> str:
    """HTML with a row of `COLUMNS` for each attempt that has ended."""

    def row(cell: str, values: Iterable[object]) -> str:
        texts = ("" if value is None else escape(str(value)) for value in values)
        return f"<tr>{''.join(f'<{cell}>{text}</{cell}>' for text in texts)}</tr>"

    lines = [row("th", COLUMNS)]
    for each in outcomes:
        times = {key: _time(each[key]) for key in ("started", "ended") if key in each}
        lines.append(row("td", ({**each, **times, "ended_as": ended_as(each)}.get(column) for column in COLUMNS)))
    return f"<table>{''.join(lines)}</table>"


def counts(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often attempts have ended in each way, for the run's summary."""
    ends = [ended_as(each) for each in outcomes]
    return {
        "events/preemptions": ends.count("preempted or stopped"),
        "events/failures": ends.count("failed"),
        "events/rollbacks": ends.count(ROLLED_BACK),
    }


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
