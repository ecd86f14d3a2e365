"""``python -m trainer.agent``: torchrun, which also leaves word of ranks that die without any, as by ``kill -9``.

When a rank fails, torchrun tells the others of this node to end, and kills those that do not after half a minute. Here
that time is a setting, and those that are killed show their stacks first.
"""

import argparse
import contextlib
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import TimeoutExpired

from torch.distributed.elastic.multiprocessing.api import SubprocessContext
from torch.distributed.run import main as torchrun

from configs.exit_codes import EXIT_RETRY
from configs.rank_records import HANG, rank_error, rank_log, record_death, record_rank_error
from trainer.processes import AGENT_PID

SHUTDOWN_TIMEOUT = "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"
"""Environment variable of torchrun's: seconds in which ranks end once they are told to."""
STACKS_S = 0.5
"""Seconds in which a rank writes its stacks."""


class Ranks:
    """The processes of torchrun's ranks on this node, when they are to end."""

    def __init__(self, context: SubprocessContext, log_dir: Path) -> None:
        self._log_dir = log_dir
        self._processes = {
            int(context.envs[local_rank]["RANK"]): handler.proc
            for local_rank, handler in context.subprocess_handlers.items()
        }

    def record_deaths(self) -> None:
        """Leave word of those that have failed by now, and left none."""
        for rank, process in self._processes.items():
            if process.poll():
                record_death(self._log_dir, rank, status=process.returncode, code=EXIT_RETRY)

    def end(self, timeout_s: float) -> None:
        """Have the others end, and those that do not show where they are."""
        running = {rank: process for rank, process in self._processes.items() if process.poll() is None}
        for process in running.values():
            process.terminate()
        end = time.monotonic() + timeout_s
        for process in running.values():
            with contextlib.suppress(TimeoutExpired):
                process.wait(max(end - time.monotonic(), 0.0))
        stuck = {rank: process for rank, process in running.items() if process.poll() is None}
        for process in stuck.values():
            process.send_signal(signal.SIGUSR2)
        if stuck:
            time.sleep(STACKS_S)
        for rank in stuck:
            if not rank_error(self._log_dir, rank).exists():
                where = f"the stacks of its threads are in {rank_log(self._log_dir, rank)}"
                reason = f"did not end within {timeout_s:g} s of another rank's failure; {where}"
                record_rank_error(self._log_dir, rank, code=EXIT_RETRY, reason=reason, error=HANG)


def main() -> None:
    """Run torchrun with the command line's arguments, its own first."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--log-dir", type=Path, required=True)
    log_dir: Path = parser.parse_known_args()[0].log_dir
    timeout_s = float(os.environ.get(SHUTDOWN_TIMEOUT, "30"))
    close = SubprocessContext.close

    def close_with_word(context: SubprocessContext, *_: object, **__: object) -> None:
        """In place of torchrun's own, which comes when a rank has failed, and again at the end."""
        ranks = Ranks(context, log_dir)
        ranks.record_deaths()
        ranks.end(timeout_s)
        close(context, signal.SIGKILL)

    SubprocessContext.close = close_with_word  # type: ignore[assignment, method-assign]
    os.environ[AGENT_PID] = str(os.getpid())
    torchrun(sys.argv[1:])


if __name__ == "__main__":
    main()
