"""``effnet report``: an HTML page of one run, or of several beside each other."""

from collections.abc import Sequence
from pathlib import Path

from configs.files import write_atomically
from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from launch.disk import fault_of_disk
from launch.reporting.curves import MOST_RUNS
from launch.reporting.record import read_record
from launch.reporting.reports import comparison, report

PAGE, COMPARISON = "report.html", "comparison.html"
SUFFIXES = (".html", ".htm")
"""Of a page: another file that is named by mistake, of a run perhaps, stays."""


def write_report(runs: Sequence[str], *, out: Path | None = None, runs_dir: str = "runs") -> Path:
    """Write the page, all at once, and return where it is.

    Args:
        runs: Ids, beginnings of ids, or paths.
        out: File to write. None is ``report.html`` in the run's directory, of several runs ``comparison.html`` here.
        runs_dir: Where ids are looked for.

    Raises:
        ConfigError: If there is no such run, or there are too many, or the page cannot be where it is wanted.
        OSError: If the disk takes no more.
    """
    if out is not None and (out.suffix not in SUFFIXES or out.is_dir() or not out.absolute().parent.is_dir()):
        accepted = f"a file that ends in {SUFFIXES[0]}, in a folder that exists"
        raise ConfigError([Problem(key="--out", received=str(out), accepted=accepted)])
    if len(runs) > MOST_RUNS:
        accepted = f"up to {MOST_RUNS} runs: lines of more cannot be told apart"
        raise ConfigError([Problem(key="RUN", received=str(len(runs)), accepted=accepted)])
    found = [RunDirectory.find(run, runs_dir) for run in runs]
    ids = [run.run_id for run in found]
    records = [read_record(run, name=str(run.path) if ids.count(run.run_id) > 1 else None) for run in found]
    if len(records) == 1:
        file, text = out or found[0].path / PAGE, report(records[0])
    else:
        file, text = out or Path(COMPARISON), comparison(records)
    try:
        write_atomically(file, text)
    except OSError as error:
        if fault_of_disk(error) is not None:
            raise
        accepted = f"a file that can be written ({error.strerror})"
        raise ConfigError([Problem(key="--out", received=str(file), accepted=accepted)]) from None
    return file
