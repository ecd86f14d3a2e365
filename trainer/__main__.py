"""``python -m trainer``: the process that runs on each rank. Signals and logs are set up before torch is imported."""

import argparse
import contextlib
import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED, EXIT_RETRY
from configs.lifeline import end_with_parent
from configs.problems import ConfigError, DataError, UnreachableError
from configs.rank_records import PEER_LOST, rank_log, record_rank_error
from configs.run import QUIET, RunDirectory
from trainer.logs import logger, redirect_output
from trainer.processes import AGENT_PID, Processes
from trainer.signals import StopFlag

LOST_PEER = re.compile(r"gloo[/:]|\bNCCL\b|\bDist(Backend|Network|Store)Error\b|Connection closed by peer")
"""What gloo, NCCL and torch's store say when another rank has ended, or the network to it."""


def main() -> int:
    """Parse, run, and turn what comes of it into an exit code and a record."""
    arguments = _parse()
    flag = StopFlag()
    if arguments.command == "fit":
        flag.install()
    processes = Processes.from_environment()
    if processes.is_distributed:
        # Without its agent a rank would train on, beside those that the next attempt starts.
        end_with_parent(int(os.environ.get(AGENT_PID, os.getppid())))
    run = RunDirectory(arguments.run)
    log_dir: Path = arguments.log_dir
    to_terminal = processes.global_rank == 0 and not (arguments.quiet and arguments.command == "doctor")
    log = rank_log(log_dir, processes.global_rank)
    quiet = arguments.quiet or QUIET in os.environ
    console = redirect_output(log, to_terminal=to_terminal, quiet=quiet)
    progress = Console(quiet=True) if quiet else console

    def work() -> None:
        if arguments.command == "fit":
            from trainer.fit import fit

            fit(run, attempt=arguments.attempt, flag=flag, processes=processes, console=console, progress=progress)
        elif arguments.command == "doctor":
            from trainer.doctor.examination import doctor

            doctor(run, log_dir=log_dir, processes=processes, console=console)
        elif arguments.command == "tune-lr":
            from trainer.tuning.learning_rate import tune_learning_rate

            tune_learning_rate(
                run,
                processes=processes,
                console=console,
                min_lr=arguments.min_lr,
                max_lr=arguments.max_lr,
                steps=arguments.steps,
                result=arguments.result,
                plot=arguments.plot,
                progress=progress,
            )
        elif arguments.command == "tune-batch-size":
            from trainer.tuning.batch_size import tune_batch_size

            tune_batch_size(
                run,
                console=console,
                sizes=arguments.sizes,
                world_size=arguments.world_size,
                steps=arguments.steps,
                result=arguments.result,
                progress=progress,
            )
        elif arguments.command == "validate":
            from trainer.evaluation.command import Request, validate

            request = Request(**{field.name: getattr(arguments, field.name) for field in fields(Request)})
            validate(request, processes=processes, console=console, progress=progress)
        elif arguments.command == "predict":
            from trainer.predicting.command import predict

            predict(
                run,
                inputs=arguments.inputs,
                checkpoint=arguments.checkpoint,
                raw=arguments.raw,
                top_k=arguments.top_k,
                batch_size=arguments.batch_size,
                out=arguments.out,
                contact_sheet=arguments.contact_sheet,
                processes=processes,
                console=console,
                progress=progress,
            )
        else:
            from trainer.export import export

            export(
                run,
                checkpoint=arguments.checkpoints,
                average=arguments.average,
                formats=arguments.formats,
                out_dir=arguments.out_dir,
                raw=arguments.raw,
                tolerance=arguments.tolerance,
                calibration_samples=arguments.calibration_samples,
                test_samples=arguments.test_samples,
                bn_samples=arguments.bn_samples,
                console=console,
                progress=progress,
            )

    return _guarded(work, log_dir=log_dir, processes=processes)


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


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("fit", "validate", "export", "predict", "doctor", "tune-lr", "tune-batch-size"):
        command = commands.add_parser(name)
        command.add_argument("run", type=Path, help="run directory")
        command.add_argument("--log-dir", type=Path, required=True, help="folder for a log file of each rank")
        about = "write the report to RUN/preflight.json alone" if name == "doctor" else "show no progress"
        command.add_argument("--quiet", action="store_true", help=about)
        if name == "fit":
            command.add_argument("--attempt", type=int, required=True, help="number of this start of the run, from 0")
        elif name.startswith("tune-"):
            command.add_argument("--steps", type=int, required=True, help="optimizer steps, of each size")
            command.add_argument("--result", type=Path, required=True, help="file of JSON to write")
        elif name in ("validate", "predict"):
            command.add_argument("--checkpoint", type=Path, help="checkpoint directory; the newest if left out")
        if name == "tune-lr":
            command.add_argument("--min-lr", type=float, required=True, help="learning rate of the first step")
            command.add_argument("--max-lr", type=float, required=True, help="learning rate of the last step")
            command.add_argument("--plot", type=Path, help="PNG to draw")
        if name == "tune-batch-size":
            command.add_argument("--sizes", type=int, nargs="+", required=True, help="micro-batch sizes, ascending")
            command.add_argument("--world-size", type=int, required=True, help="devices of the run")
        if name == "validate":
            # What each is: trainer/evaluation/command.py. RUN is the folder of results where a model is named.
            command.add_argument("--model")
            command.add_argument("--weights", type=Path)
            command.add_argument("--shards", nargs="+", default=())
            command.add_argument("--image-sizes", type=int, nargs="+", default=())
            command.add_argument("--crop-pcts", type=float, nargs="+", default=())
            command.add_argument("--real-labels")
            command.add_argument("--out", type=Path)
            command.add_argument("--overrides", nargs="+", default=())
        if name == "predict":
            command.add_argument("--inputs", type=Path, required=True, help="file of JSON: paths and listed")
            command.add_argument("--raw", action="store_true", help="the raw weights, not their average")
            command.add_argument("--top-k", type=int, required=True, help="classes of each image")
            command.add_argument("--batch-size", type=int, help="images at once; the run's own if left out")
            command.add_argument("--out", type=Path, help="file for the answers")
            command.add_argument("--contact-sheet", type=Path, help="PNG of images with their answers")
        if name == "export":
            command.add_argument("--out-dir", type=Path)
            command.add_argument("--raw", action="store_true", help="the raw weights, not their average")
            command.add_argument("--checkpoint", type=Path, action="append", default=[], dest="checkpoints")
            command.add_argument("--average", type=int, help="mean over so many of the newest checkpoints")
            command.add_argument("--bn-samples", type=int, help="training images for a mean's BatchNorm statistics")
            command.add_argument("--format", action="append", default=[], dest="formats")
            command.add_argument("--tolerance", type=float, required=True, help="share of the largest logit")
            command.add_argument("--calibration-samples", type=int, required=True, help="images that set int8's ranges")
            command.add_argument("--test-samples", type=int, required=True, help="images that int8 is tried on")
    return parser.parse_args()


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the log's disk is full: that is no other way to end
            stream.flush()
    # Past this point only library teardown is left (process groups, W&B's service), which may hang or overwrite the
    # exit code.
    os._exit(code)
