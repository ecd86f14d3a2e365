"""The engines that jobs are submitted to, each behind the same few functions."""

from typing import Protocol

from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from launch.kubernetes import jobs as kubernetes_jobs
from launch.ledger import LEDGER, JobState, Submission, submissions
from launch.lock import RunInProgressError
from launch.slurm import jobs as slurm_jobs


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


def refuse_if_submitted(run: RunDirectory, *, engine: str | None = None) -> None:
    """See that no job of a run waits or runs, which would train beside what is about to begin.

    Args:
        run: The run.
        engine: Whose jobs are no matter: it lets one of a run's jobs train at a time by itself.

    Raises:
        RunInProgressError: If there is one.
        ConfigError: If one was submitted to an engine that this machine does not reach.
    """
    for sent in submissions(run):
        if sent.engine == engine:
            continue
        name = f"{sent.engine} job {sent.job_id}"
        try:
            state = ENGINES[sent.engine].state(sent.job_id)
        except ConfigError as error:
            received = f"{name}, submitted {sent.time}: {error.problems[0].received}"
            accepted = f"a machine that can ask for it; if the job is gone, remove {run.launch_dir / LEDGER}"
            raise ConfigError([Problem(key=run.run_id, received=received, accepted=accepted)]) from None
        if state is not None:
            where = f" on {state.nodes}" if state.nodes else ""
            text = f"{run.path} is in progress: {name}, submitted {sent.time}, is {state.word}{where}"
            raise RunInProgressError(f"{text}; end that first (effnet cancel {run.path})")


def ended_elsewhere(run: RunDirectory) -> str | None:
    """How Kubernetes says that the run's last job has ended; None where it does not, or is out of reach."""
    sent = submissions(run)
    if not sent or sent[-1].engine != "kubernetes":
        return None
    try:
        return kubernetes_jobs.verdict(sent[-1].job_id)
    except ConfigError:
        return None
