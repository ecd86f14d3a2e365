"""``python -m trainer``: the process that runs on each rank. Signals and logs are set up before torch is imported."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY
from configs.lifeline import end_with_parent
from configs.problems import ConfigError, DataError, UnreachableError
from configs.rank_records import PEER_LOST, rank_log, record_rank_error
from configs.run import QUIET, RunDirectory
from trainer.commands import COMMANDS, Call
from trainer.logs import logger, redirect_output
from trainer.processes import AGENT_PID, Processes
from trainer.signals import StopFlag

LOST_PEER = re.compile(
    r"gloo[/:]|\bNCCL\b|\bDist(Backend|Network|Store)Error\b|Connection closed by peer"
    r"|Application timeout caused pair closure"
)
"""What gloo, NCCL and torch's store say when another rank has ended, or the network to it. Of a sum that has begun when
another's time is up, gloo says the last."""


def main() -> int:
    """Parse, run, and turn what comes of it into an exit code and a record."""
    options = _parse()
    command, run, log_dir, quiet = (options.pop(name) for name in ("command", "run", "log_dir", "quiet"))
    flag = StopFlag()
    if command == "fit":
        flag.install()
    processes = Processes.from_environment()
    if processes.is_distributed:
        # Without its agent a rank would train on, beside those that the next attempt starts.
        end_with_parent(int(os.environ.get(AGENT_PID, os.getppid())))
    to_terminal = processes.global_rank == 0 and not (quiet and command == "doctor")
    quiet = quiet or QUIET in os.environ
    console = redirect_output(rank_log(log_dir, processes.global_rank), to_terminal=to_terminal, quiet=quiet)
    progress = Console(quiet=True) if quiet else console

    call = Call(
        run=RunDirectory(run),
        options=options,
        log_dir=log_dir,
        flag=flag,
        processes=processes,
        console=console,
        progress=progress,
    )
    return _guarded(lambda: COMMANDS[command].work(call), log_dir=log_dir, processes=processes)


def _guarded(work: Callable[[], None], *, log_dir: Path, processes: Processes) -> int:
    try:
        work()
    except (ConfigError, DataError) as error:
        return _record(error, EXIT_DO_NOT_RETRY, log_dir=log_dir, processes=processes)
    except UnreachableError as error:
        return _record(error, EXIT_RETRY, log_dir=log_dir, processes=processes)
    except Exception as error:
        from trainer.checkpointing import Interrupted
        from trainer.rollback import RollBack

        code = EXIT_INTERRUPTED if isinstance(error, Interrupted) else EXIT_RETRY
        if isinstance(error, RollBack):
            return _record(error, code, log_dir=log_dir, processes=processes, rollback=True)
        if code == EXIT_RETRY:
            logger.exception("rank %d failed", processes.global_rank)
        return _record(error, code, log_dir=log_dir, processes=processes)
    return EXIT_DONE


def _record(error: Exception, code: int, *, log_dir: Path, processes: Processes, rollback: bool = False) -> int:
    """Leave the reason where the launcher finds it, whichever node this is."""
    reason = str(error) if code != EXIT_RETRY or rollback else f"{type(error).__name__}: {error}"
    kind = PEER_LOST if code == EXIT_RETRY and LOST_PEER.search(reason) else type(error).__name__
    try:
        record_rank_error(log_dir, processes.global_rank, code=code, reason=reason, error=kind, rollback=rollback)
        sys.stderr.write(f"{reason}\n")
    except OSError as full:  # the exit code stands, and rank 0's terminal has the reason
        logger.error("%s (%s)", reason, full)
    return code


def _parse() -> dict[str, Any]:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in COMMANDS.items():
        options = commands.add_parser(name)
        options.add_argument("run", type=Path, help="run directory")
        options.add_argument("--log-dir", type=Path, required=True, help="folder for a log file of each rank")
        options.add_argument("--quiet", action="store_true", help=command.when_quiet)
        command.add_options(options)
    return vars(parser.parse_args())


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log's disk is full: that is no other way to end
            stream.flush()
    # Past this point only library teardown is left (process groups, W&B's service), which may hang or overwrite the
    # exit code.
    os._exit(code)
