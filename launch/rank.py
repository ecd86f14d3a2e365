"""``python -m launch.rank``: what each task on a cluster runs: tells the trainer its rank, leaves word if that dies.

Understands the variables of torchrun and of Slurm's srun.
"""

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import FrameType

ATTEMPT = "EFFNET_ATTEMPT"
"""Number of the attempt, where the job's script has begun it."""
RESTARTS = ("SLURM_RESTART_COUNT", "JOB_RESTART_ATTEMPT")
"""Where engines count how often they have started the job again."""
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


def main() -> int:
    """Run the trainer as this rank; returns its exit code, 128 and more for a signal."""
    received: list[int] = []
    children: list[subprocess.Popen[bytes]] = []

    def on_signal(number: int, _: FrameType | None) -> None:
        received.append(number)
        # Slurm signals every process of a step by itself. Others signal this one alone.
        if children and "SLURM_JOB_ID" not in os.environ:
            children[0].send_signal(number)

    for number in SIGNALS:
        signal.signal(number, on_signal)
    # After the handlers, so that a signal at the start ends nothing.
    from configs.lifeline import end_with_parent
    from configs.rank_records import rank_error, rank_errors, record_death
    from configs.run import RunDirectory
    from launch.temporary import temporary_files

    parser = argparse.ArgumentParser(prog="python -m launch.rank", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--first-attempt", type=int, default=0, help="number of the job's first attempt")
    arguments = parser.parse_args()
    run = RunDirectory(arguments.run)
    attempt = attempt_number(os.environ, first=arguments.first_attempt)
    ranks = rank_variables(os.environ)
    rank, log_dir = int(ranks["RANK"]), run.log_dir(attempt)
    log_dir.mkdir(parents=True, exist_ok=True)
    # torchrun starts ranks again that have ended for good, and counts a checkpoint as a failure.
    ended = [error["exit_code"] for error in rank_errors(log_dir) if error["exit_code"] in (85, 93)]
    if ended and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)):
        return int(ended[0])
    rank_error(log_dir, rank).unlink(missing_ok=True)

    command = [sys.executable, "-m", "trainer", "fit", str(run.path), f"--attempt={attempt}", f"--log-dir={log_dir}"]
    # Held back until the trainer can take them: this too survives exec.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    with temporary_files({**os.environ, **ranks}) as environment:
        children.append(
            subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                env=environment,
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: this process has one thread
            )
        )
        for early in received:
            children[0].send_signal(early)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        status = children[0].wait()
    code = status if status >= 0 else 128 - status
    if status != 0:
        record_death(log_dir, rank, status=status, code=code)
    return code


def attempt_number(environment: Mapping[str, str], *, first: int) -> int:
    """The attempt that this is: as the job's script says, or the first one and the restarts that the engine counts."""
    if ATTEMPT in environment:
        return int(environment[ATTEMPT])
    return first + next((int(environment[name]) for name in RESTARTS if name in environment), 0)


def rank_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """RANK and the like, as torchrun names them, from whichever launcher has started this process; one alone without.

    Raises:
        ValueError: If a node of a Slurm job has another number of tasks than the others.
    """
    if "RANK" in environment:
        return {name: environment[name] for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    if "SLURM_PROCID" not in environment:
        return {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": "0"}
    tasks, nodes = int(environment["SLURM_STEP_NUM_TASKS"]), int(environment["SLURM_STEP_NUM_NODES"])
    if tasks % nodes:
        raise ValueError(f"{tasks} tasks on {nodes} nodes: not as many on each")
    return {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(tasks // nodes),
        "GROUP_RANK": environment["SLURM_NODEID"],
    }


if __name__ == "__main__":
    sys.exit(main())
