"""``effnet status`` and ``effnet runs``: what a run's directory and its engine say of it, in a table."""

import fcntl
from pathlib import Path

from rich.box import HEAVY_HEAD, SIMPLE
from rich.console import Console
from rich.table import Table

from configs.problems import ConfigError
from configs.run import RunDirectory
from launch.engines import active_jobs, ended_elsewhere
from launch.glance import progress, sparkline
from launch.ledger import submissions

MOST_OF_A_CURVE = 24
"""Characters of a sparkline where there is room."""
ROOMY = 120
"""Columns of a terminal from which on there is."""


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
    if run.wandb_url_file.exists():
        table.add_row("W&B", run.wandb_url_file.read_text(encoding="utf-8").strip())
    table.add_row("directory", str(run.path))
    console.print(table, highlight=False, markup=False)


def show_runs(runs_dir: Path, console: Console) -> None:
    """Print a line for each run in a folder, the one changed last at the end.

    A terminal shows how the metric went by which a run is judged, or the training loss before the first validation; a
    narrow one leaves out checkpoints and that metric's name. Elsewhere a run has a line, however long that is.
    """
    narrow = console.is_terminal and console.width < ROOMY
    drawn = console.is_terminal and console.encoding.startswith("utf")
    columns = ["run", "state", "step", *([] if narrow else ["last checkpoint"]), "attempts", "best"]
    table = Table(box=SIMPLE if narrow else HEAVY_HEAD, pad_edge=not narrow)
    for name in [*columns, *(["curve"] if drawn else [])]:
        table.add_column(name, no_wrap=name not in ("state", "best"), overflow="fold")
    runs = sorted((file.parent for file in runs_dir.glob("*/config.yaml")), key=lambda path: path.stat().st_mtime)
    for run in map(RunDirectory, runs):
        facts = progress(run)
        cells = [run.run_id, state(run), str(facts.step)]
        cells += [] if narrow else [run.latest_checkpoint() or ""]
        best = "" if facts.best is None else f"{facts.best[1]:.4f}" if narrow else "{} {:.4f}".format(*facts.best)
        cells += [str(run.attempts), best]
        cells += [sparkline(facts.curve, MOST_OF_A_CURVE // (3 if narrow else 1))] if drawn else []
        table.add_row(*cells)
    if not console.is_terminal:
        console.width = console.measure(table, options=console.options.update(width=10**4)).maximum
    console.print(table, highlight=False, markup=False)
