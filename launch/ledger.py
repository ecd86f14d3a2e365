"""The ledger of what was submitted of a run, and whether that is to go on: read by launchers and by jobs themselves."""

import json
from dataclasses import asdict, dataclass

from configs.files import write_atomically
from configs.run import RunDirectory

LEDGER = "submissions.jsonl"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """One line of the ledger: when what was handed to which engine."""

    time: str
    engine: str
    job_id: str
    artefact: str


@dataclass(frozen=True, kw_only=True)
class JobState:
    """How an engine says that a job is.

    Attributes:
        word: ``running``, ``waiting``, ``suspended``, ``ending``.
        nodes: Where it runs, as the engine writes it.
        reason: Why it waits, in the engine's words.
    """

    word: str
    nodes: str = ""
    reason: str = ""


def record(run: RunDirectory, submission: Submission) -> None:
    """Add a line to the run's ledger: all of it, or on a full disk none."""
    file = run.launch_dir / LEDGER
    known = file.read_text(encoding="utf-8") if file.exists() else ""
    write_atomically(file, known + json.dumps(asdict(submission), ensure_ascii=False) + "\n")


def request_cancellation(run: RunDirectory) -> None:
    """Keep the run's jobs from going back into the queue when they have checkpointed."""
    run.keep_from_queue()


def withdraw_cancellation(run: RunDirectory) -> None:
    """Let the run go on again."""
    run.cancelled_file.unlink(missing_ok=True)


def submissions(run: RunDirectory) -> list[Submission]:
    """The run's ledger, oldest first."""
    file = run.launch_dir / LEDGER
    if not file.exists():
        return []
    return [Submission(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]
