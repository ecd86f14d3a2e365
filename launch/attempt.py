"""``python -m launch.attempt``: how a job's script begins an attempt, records its end, and learns what to do next."""

import argparse
import json
import os
import socket
import sys
import time
from itertools import takewhile
from pathlib import Path
from typing import Any

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY
from configs.files import write_atomically
from configs.rank_records import rank_errors
from configs.run import RunDirectory
from launch.disk import fault_of_disk, recorded
from launch.restarts import judged
from launch.supervisor import described, outcome

FACTS = "attempt.json"
"""In the folder of an attempt's logs."""
JOB = ("SLURM_JOB_ID", "SLURM_JOB_NODELIST")
LOST = "ended by the cluster without a word: a node that failed, or a requeue"


def begin(run: RunDirectory) -> tuple[int, int]:
    """Make the log folder of a new attempt on the node where rank 0 will be; returns its number and a port free here.

    Attempts that ended without an outcome, because their script was killed too, get one.
    """
    record_lost(run)
    attempt = run.begin_attempt()
    known = {"started": time.time(), **{name: os.environ[name] for name in JOB if name in os.environ}}
    write_atomically(run.log_dir(attempt) / FACTS, json.dumps(known, indent=2) + "\n")
    with socket.socket() as probe:
        probe.bind(("", 0))
        return attempt, int(probe.getsockname()[1])


def facts(run: RunDirectory, attempt: int) -> dict[str, Any]:
    """What the job's script knew when the attempt began: when that was, the job's id, its nodes."""
    file = run.log_dir(attempt) / FACTS
    known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return known


def record_lost(run: RunDirectory, *, reason: str = LOST) -> None:
    """Record the outcome of attempts whose script or launcher did not live to do it, and where no rank has, why."""
    known = {past["attempt"] for past in run.outcomes()}
    for attempt in range(run.attempts):
        log_dir = run.log_dir(attempt)
        if attempt in known or not log_dir.is_dir():
            continue
        started = facts(run, attempt).get("started", log_dir.stat().st_mtime)
        result = outcome(1, attempt=attempt, log_dir=log_dir, started=started)
        run.record_outcome(judged(result, run) if rank_errors(log_dir) else {**result, "reason": reason})


def end(run: RunDirectory, *, attempt: int, status: int) -> dict[str, Any]:
    """Record how an attempt ended, from its launcher's status and what its ranks left; returns that."""
    log_dir = run.log_dir(attempt)
    started = facts(run, attempt).get("started", time.time())
    result = judged(outcome(status, attempt=attempt, log_dir=log_dir, started=started), run)
    result["checkpoint"] = run.latest_checkpoint()
    return recorded(result, run)


def again(outcomes: list[dict[str, Any]], *, requeues: int, max_requeues: int, max_failures: int) -> bool:
    """Whether a job goes back into the queue after the last of these attempts.

    Args:
        outcomes: Of all attempts, the last one's last.
        requeues: Times that the job has gone back before.
        max_requeues: Most of these.
        max_failures: Failures in a row, without a new checkpoint, after which it starts again.
    """
    code = outcomes[-1]["exit_code"]
    if code in (EXIT_DONE, EXIT_DO_NOT_RETRY) or requeues >= max_requeues:
        return False
    if code == EXIT_INTERRUPTED:
        return True
    reached = outcomes[-1].get("checkpoint")
    failures = takewhile(
        lambda past: past["exit_code"] != EXIT_INTERRUPTED and past.get("checkpoint") == reached, reversed(outcomes)
    )
    return len(list(failures)) <= max_failures


def main() -> int:
    """``begin`` prints number and port; ``end`` prints whether to requeue, and exits with the attempt's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.attempt", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("begin").add_argument("run", type=Path)
    ending = commands.add_parser("end")
    ending.add_argument("run", type=Path)
    for name in ("attempt", "status", "requeues", "max-requeues", "max-failures"):
        ending.add_argument(f"--{name}", type=int, required=True)
    arguments = parser.parse_args()
    try:
        return _done(arguments)
    except OSError as error:
        fault = fault_of_disk(error)
        if fault is None:
            raise
        sys.stderr.write(f"error: {fault}\n")
        return EXIT_RETRY


def _done(arguments: argparse.Namespace) -> int:
    """Begin or end an attempt; returns the exit code."""
    run = RunDirectory(arguments.run)
    cancelled = run.cancelled_file.exists()
    if arguments.command == "begin" and cancelled:
        sys.stderr.write("cancelled: effnet launch submits the run again\n")
        return EXIT_INTERRUPTED
    if arguments.command == "begin":
        sys.stdout.write("{} {}\n".format(*begin(run)))
        return 0
    result = end(run, attempt=arguments.attempt, status=arguments.status)
    requeue = not cancelled and again(
        [*(past for past in run.outcomes() if past["attempt"] != result["attempt"]), result],
        requeues=arguments.requeues,
        max_requeues=arguments.max_requeues,
        max_failures=arguments.max_failures,
    )
    sys.stdout.write("requeue\n" if requeue else "end\n")
    joined = " on " if result["rank"] is not None else ": "
    sys.stderr.write(f"attempt {arguments.attempt}: {result['exit_class']}{joined}{described(result)}\n")
    return int(result["exit_code"])


if __name__ == "__main__":
    sys.exit(main())
