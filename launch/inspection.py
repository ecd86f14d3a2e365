"""``effnet status`` and ``effnet runs``: what a run's directory and its engine say of it, in a table."""

import csv
import fcntl
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.problems import ConfigError
from configs.run import RunDirectory
from launch.engines import active_jobs, ended_elsewhere
from launch.ledger import submissions

BEST = ("val/ema_top1", "val/top1")
"""Metrics by which a run is judged, the first of which is there."""


@dataclass(frozen=True, kw_only=True)
class Progress:
    """How far a run is, by metrics.csv.

    Attributes:
        step: Optimizer steps done.
        images_per_second: As last measured.
        best: Name and largest value of the metric that counts, or None before the first validation.
    """

    step: int
    images_per_second: float | None
    best: tuple[str, float] | None


def progress(run: RunDirectory) -> Progress:
    """Read metrics.csv, which may be written to meanwhile."""
    rows: list[dict[str, str]] = []
    if run.metrics_file.is_file():
        with run.metrics_file.open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.DictReader(file) if (row.get("step") or "").isdecimal()]

    def values(name: str) -> list[float]:
        return [float(row[name]) for row in rows if row.get(name)]

    speeds = values("throughput/images_per_second")
    judged = [(name, max(values(name))) for name in BEST if values(name)]
    return Progress(
        step=max((int(row["step"]) for row in rows), default=0),
        images_per_second=speeds[-1] if speeds else None,
        best=judged[0] if judged else None,
    )


def lock_holder(run: RunDirectory) -> str | None:
    """Who works on the run on a machine that shares its lock, such as ``process 12 on host``; None if nobody does."""
    try:
        with run.lock_file.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return file.read(200).decode("utf-8", "replace").strip()
    except OSError:
        pass
    return None


def is_active(run: RunDirectory) -> bool:
    """Whether something works on the run, or waits to."""
    return lock_holder(run) is not None or bool(active_jobs(run))


def state(run: RunDirectory) -> str:
    """One line: running, waiting, or how the last attempt ended."""
    holder = lock_holder(run)
    if holder is not None:
        return f"running ({holder})"
    try:
        jobs = active_jobs(run)
    except ConfigError:
        jobs = []
    if jobs:
        submission, job = jobs[-1]
        where = job.nodes if job.word == "running" else job.reason
        return f"{job.word} ({submission.engine} job {submission.job_id}{', ' + where if where else ''})"
    outcomes = run.outcomes()
    return str(outcomes[-1]["exit_class"]) if outcomes else ended_elsewhere(run) or "not begun"


def show_status(run: RunDirectory, console: Console) -> None:
    """Print what is known of one run."""
    facts, past, sent = progress(run), run.outcomes(), submissions(run)
    table = Table(show_header=False, title=run.run_id, title_justify="left")
    table.add_row("state", state(run))
    table.add_row("step", str(facts.step))
    if facts.images_per_second is not None:
        table.add_row("images/s", f"{facts.images_per_second:,.0f}")
    table.add_row("last checkpoint", run.latest_checkpoint() or "none")
    if facts.best is not None:
        table.add_row(f"best {facts.best[0]}", f"{facts.best[1]:.4f}")
    table.add_row("attempts", str(run.attempts))
    for outcome in past[-5:]:
        where = f" on rank {outcome['rank']} ({outcome['host']})" if outcome["rank"] is not None else ""
        table.add_row(f"attempt {outcome['attempt']}", f"{outcome['exit_class']}{where}: {outcome['reason']}")
    for submission in sent[-3:]:
        table.add_row("submitted", f"{submission.time}  {submission.engine} job {submission.job_id}")
    table.add_row("directory", str(run.path))
    console.print(table, highlight=False, markup=False)


def show_runs(runs_dir: Path, console: Console) -> None:
    """Print a line for each run in a folder, the one changed last at the end."""
    table = Table("run", "state", "step", "last checkpoint", "attempts", "best")
    runs = sorted((file.parent for file in runs_dir.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
    for run in map(RunDirectory, runs):
        facts = progress(run)
        best = f"{facts.best[0]} {facts.best[1]:.4f}" if facts.best is not None else ""
        checkpoint = run.latest_checkpoint() or ""
        table.add_row(run.run_id, state(run), str(facts.step), checkpoint, str(run.attempts), best)
    console.print(table, highlight=False, markup=False)
