"""What is asked of Slurm through its commands: to take a job, how it is, to end it."""

import subprocess

from configs.problems import ConfigError, Problem
from launch.ledger import JobState

TIMEOUT_S = 120


def submit(script: str) -> str:
    """Hand a script to sbatch; returns the job's id.

    Raises:
        ConfigError: If there is no Slurm here, or it refuses the job.
    """
    done = _run("sbatch", "--parsable", given=script)
    if done.returncode:
        received = done.stderr.strip() or f"status {done.returncode} of sbatch"
        accepted = "settings under launch and trainer that this cluster can serve"
        raise ConfigError([Problem(key="launch slurm", received=received, accepted=accepted)])
    return done.stdout.strip().partition(";")[0]


def state(job_id: str) -> JobState | None:
    """How a job is; None where Slurm has it in no queue any more.

    Raises:
        ConfigError: If there is no Slurm here.
    """
    done = _run("squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T|%N|%r")
    if done.returncode or not done.stdout.strip():
        return None
    word, nodes, reason = done.stdout.strip().splitlines()[0].split("|")
    active = {"RUNNING": "running", "COMPLETING": "running", "CONFIGURING": "running", "PENDING": "waiting"}
    active |= {"SUSPENDED": "suspended", "REQUEUED": "waiting", "PREEMPTED": "waiting", "SIGNALING": "running"}
    if word not in active:
        return None
    return JobState(word=active[word], nodes=nodes, reason="" if reason == "None" else reason)


def checkpoint_and_end(job_id: str) -> None:
    """Tell all ranks to checkpoint and end; a job that waits is taken out of the queue."""
    _run("scancel", "--state=PENDING", job_id)
    _run("scancel", "--state=RUNNING", "--signal=USR1", job_id)


def end_now(job_id: str) -> None:
    """Kill a job."""
    _run("scancel", job_id)


def _run(*command: str, given: str = "") -> "subprocess.CompletedProcess[str]":
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError:
        accepted = "a machine from which jobs are submitted to Slurm"
        raise ConfigError([Problem(key="slurm", received=f"no {command[0]} here", accepted=accepted)]) from None
