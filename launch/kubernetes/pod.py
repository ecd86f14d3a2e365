"""``python -m launch.kubernetes.pod``: what each pod runs: the ranks of its node, from the first to the last line.

The pod of rank 0 numbers the attempt and records how it ends; the others read that number in the run directory. All
write what their ranks log to standard output too, each line with its rank.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY
from configs.files import write_atomically
from configs.lifeline import end_with_parent
from configs.load import load_config
from configs.problems import ConfigError, DataError, Problem
from configs.rank_records import rank_errors, rank_log
from configs.run import RunDirectory
from configs.schema import Config
from launch import attempt as attempts
from launch.disk import fault_of_disk
from launch.fit import is_longer, prepare
from launch.inbox import SignalInbox
from launch.rank import ATTEMPT, SIGNALS
from launch.reading_logs import RankLog
from launch.restarts import judged
from launch.supervisor import GRACE_S, described, outcome

CONFIG = "EFFNET_CONFIG"
"""Variable with the resolved configuration, in YAML."""
ORIGINS = "EFFNET_ORIGINS"
"""Variable with where its settings came from, in JSON."""
JOB_UID = "EFFNET_JOB_UID"
"""Variable that is the same in all pods of a Job, and another one each time that the Job is made again."""
RESTART = "EFFNET_RESTART"
"""Variable with the number of times that it has been."""
DONE = "done"
"""Stands for the number of an attempt where none is to be made."""
POLL_S = 0.3
ELSEWHERE_EVERY_S = 5.0
"""Seconds between two looks at what other nodes' ranks have left."""


def main() -> int:
    """Run this node's ranks; returns the pod's exit code."""
    parser = argparse.ArgumentParser(prog="python -m launch.kubernetes.pod", description=__doc__)
    parser.add_argument("run", type=Path, help="run directory")
    parser.add_argument("--max-failures", type=int, required=True, help="in a row without a new checkpoint")
    arguments = parser.parse_args()
    run, node_rank = RunDirectory(arguments.run), int(os.environ["PET_NODE_RANK"])
    with SignalInbox() as inbox:
        try:
            config = _given_config()
            if node_rank == 0:
                begun: str | None = _first(run, config, max_failures=arguments.max_failures)
                write_atomically(_attempt_file(run, os.environ[JOB_UID]), str(begun))
            else:
                begun = _begun(run, inbox)
        except (ConfigError, DataError) as error:
            _say(f"error: {error}")
            return EXIT_DO_NOT_RETRY
        except OSError as error:
            fault = fault_of_disk(error)
            if fault is None:
                raise
            _say(f"error: {fault}")
            return EXIT_RETRY
        if begun is None or begun == DONE:
            _say("ended before it began" if begun is None else f"{run.path} is done")
            return EXIT_INTERRUPTED if begun is None else EXIT_DONE
        number = int(begun)
        _say(f"{run.run_id}: attempt {number}")
        status = Ranks(run, number, os.environ).run(inbox)
    if node_rank == 0:
        result = attempts.end(run, attempt=number, status=status)
        _say(f"attempt {number}: {result['exit_class']}: {described(result)}")
    else:
        result = judged(outcome(status, attempt=number, log_dir=run.log_dir(number), started=0.0), run)
    return int(result["exit_code"])


class Ranks:
    """The processes of this node's ranks."""

    def __init__(self, run: RunDirectory, attempt: int, environment: Mapping[str, str]) -> None:
        self._log_dir = run.log_dir(attempt)
        first, count = _ranks_here(environment)
        self._logs = [(rank, rank_log(self._log_dir, rank)) for rank in range(first, first + count)]
        self._read: dict[int, RankLog] = {}
        self._looked = time.monotonic()
        # Held back until they can take them: each rank's process unblocks them.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", "launch.rank", str(run.path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # all of it is in the log
                env={**_passed_on(environment), **variables, ATTEMPT: str(attempt)},
                preexec_fn=partial(end_with_parent, os.getpid()),  # safe: this process has one thread
            )
            for variables in rank_variables(environment)
        ]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def run(self, inbox: SignalInbox) -> int:
        """Wait for all, pass signals on, end the others of this node when a rank of any node has failed.

        Returns:
            0, or the status of the rank that failed first.
        """
        status, deadline = 0, None
        while any(process.poll() is None for process in self._processes):
            number = inbox.get(POLL_S)
            if number is not None:
                for process in self._processes:
                    process.send_signal(number)
            self._print()
            status = status or self._failed()
            if deadline is None and (status or self._failed_elsewhere()):
                deadline = time.monotonic() + GRACE_S
            if deadline is not None and time.monotonic() > deadline and status != EXIT_INTERRUPTED:
                for process in self._processes:
                    process.kill()
                status = status or EXIT_RETRY
        self._print(to_the_end=True)
        return status or self._failed()

    def _failed(self) -> int:
        return next((process.returncode for process in self._processes if process.poll()), 0)

    def _failed_elsewhere(self) -> bool:
        """Whether a rank has left word of a failure; one that has checkpointed has not failed."""
        if time.monotonic() - self._looked < ELSEWHERE_EVERY_S:
            return False
        self._looked = time.monotonic()
        return any(error["exit_code"] != EXIT_INTERRUPTED for error in rank_errors(self._log_dir))

    def _print(self, *, to_the_end: bool = False) -> None:
        for rank, path in self._logs:
            if rank not in self._read and path.exists():
                self._read[rank] = RankLog(path)
        lines = [line for log in self._read.values() for line in log.lines(to_the_end=to_the_end)]
        for _, _, rank, text in sorted(lines, key=lambda line: line[1:3]):
            sys.stdout.write(f"{rank}: {text.decode('utf-8', 'replace')}\n")
        sys.stdout.flush()


def rank_variables(environment: Mapping[str, str]) -> list[dict[str, str]]:
    """RANK and the like for each rank of this node, from the variables that Kubeflow Trainer sets for torchrun."""
    first, count = _ranks_here(environment)
    return [
        {
            "RANK": str(first + local_rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(count * int(environment["PET_NNODES"])),
            "LOCAL_WORLD_SIZE": str(count),
            "GROUP_RANK": environment["PET_NODE_RANK"],
            "MASTER_ADDR": environment["PET_MASTER_ADDR"],
            "MASTER_PORT": environment["PET_MASTER_PORT"],
        }
        for local_rank in range(count)
    ]


def _ranks_here(environment: Mapping[str, str]) -> tuple[int, int]:
    """Number of this node's first rank, and how many it has."""
    count = int(environment["PET_NPROC_PER_NODE"])
    return int(environment["PET_NODE_RANK"]) * count, count


def _passed_on(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name not in (CONFIG, ORIGINS)}


def _given_config() -> Config:
    """The configuration that this pod was given.

    Raises:
        ConfigError: If the image's code does not know it.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.yaml"
        file.write_text(os.environ[CONFIG], encoding="utf-8")
        return load_config([str(file)]).config


def _first(run: RunDirectory, config: Config, *, max_failures: int) -> str:
    """Freeze the configuration and begin an attempt, unless there is to be none; returns its number, or `DONE`.

    Raises:
        ConfigError: If the run is of another experiment, or has failed too often.
        DataError: If data that are made on the way cannot be, or the last attempt of this job is not to be repeated.
    """
    restarts, uid = int(os.environ[RESTART]), os.environ[JOB_UID]
    again = restarts > 0 or _attempt_file(run, uid).exists()  # of one Job: Kueue suspends it and lets it go on
    if not again:
        run.check(config)
    run.create()
    run.launch_dir.mkdir(exist_ok=True)
    attempts.record_lost(run)
    past = run.outcomes()
    if past and past[-1]["exit_code"] == EXIT_DONE and not is_longer(config, run):
        return DONE
    if again and past and not attempts.again(past, requeues=0, max_requeues=1, max_failures=max_failures):
        if past[-1]["exit_code"] == EXIT_DO_NOT_RETRY:
            raise DataError(described(past[-1]))
        received, accepted = described(past[-1]), f"at most {max_failures} failures in a row without a new checkpoint"
        raise ConfigError([Problem(key=f"attempt {past[-1]['attempt']}", received=received, accepted=accepted)])
    if not again or not run.config_file.exists():
        run.freeze(config)
        run.keep_origins(json.loads(os.environ.get(ORIGINS, "{}")))
    if config.data.prepare is not None:
        prepare(config)
    run.wandb_id()
    number, _ = attempts.begin(run)
    return str(number)


def _begun(run: RunDirectory, inbox: SignalInbox) -> str | None:
    """What the first pod has written: an attempt's number, or `DONE`; None if a signal comes before that."""
    file = _attempt_file(run, os.environ[JOB_UID])
    while inbox.get(POLL_S) is None:
        if file.exists():
            word = file.read_text(encoding="utf-8")
            # An attempt that has ended is the one before Kueue suspended this Job.
            if word == DONE or word not in {str(past["attempt"]) for past in run.outcomes()}:
                return word
    return None


def _attempt_file(run: RunDirectory, job_uid: str) -> Path:
    return run.launch_dir / f"attempt-of-{job_uid}"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
