"""The engines that jobs are submitted to, each behind the same few functions."""

from typing import Protocol

from configs.problems import ConfigError
from configs.run import RunDirectory
from launch import kubernetes_jobs, slurm_jobs
from launch.ledger import JobState, Submission, submissions


class Engine(Protocol):
    """What is asked of an engine; a module with these functions is one."""

    def state(self, job_id: str, /) -> JobState | None:
        """How a job is; None once it has ended."""

    def checkpoint_and_end(self, job_id: str, /) -> None:
        """Tell all ranks to checkpoint and end."""

    def end_now(self, job_id: str, /) -> None:
        """Kill a job."""


ENGINES: dict[str, Engine] = {"kubernetes": kubernetes_jobs, "slurm": slurm_jobs}


def active_jobs(run: RunDirectory) -> list[tuple[Submission, JobState]]:
    """Jobs of a run that have not ended, oldest first.

    Raises:
        ConfigError: If one was submitted to an engine that this machine does not reach.
    """
    found = [(submission, ENGINES[submission.engine].state(submission.job_id)) for submission in submissions(run)]
    return [(submission, state) for submission, state in found if state is not None]


def ended_elsewhere(run: RunDirectory) -> str | None:
    """How Kubernetes says that the run's last job has ended; None where it does not, or is out of reach."""
    sent = submissions(run)
    if not sent or sent[-1].engine != "kubernetes":
        return None
    try:
        return kubernetes_jobs.verdict(sent[-1].job_id)
    except ConfigError:
        return None
