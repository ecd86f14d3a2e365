"""The commands of ``python -m trainer``: what each takes, and what it runs. Each imports what it needs when it runs."""

from argparse import ArgumentParser
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from rich.console import Console

from configs.run import RunDirectory
from trainer.processes import Processes
from trainer.signals import StopFlag


@dataclass(frozen=True, kw_only=True)
class Call:
    """A command as it was given to this rank.

    Attributes:
        run: Directory of the run.
        options: What the command takes beside what all take; keywords of what it runs.
        log_dir: Folder of the ranks' logs.
        flag: Set by signals, for a command that ends on them by itself.
        processes: This rank among the others.
        console: For what a person wants to see.
        progress: For what a person may do without.
    """

    run: RunDirectory
    options: Mapping[str, Any]
    log_dir: Path
    flag: StopFlag
    processes: Processes
    console: Console
    progress: Console


class Command(NamedTuple):
    """A command.

    Attributes:
        add_options: Adds what it takes beside what all take, by the names of what it runs.
        work: Runs it.
        when_quiet: What `--quiet` does.
    """

    add_options: Callable[[ArgumentParser], None]
    work: Callable[[Call], None]
    when_quiet: str = "show no progress"


def _fit_options(parser: ArgumentParser) -> None:
    parser.add_argument("--attempt", type=int, required=True, help="number of this start of the run, from 0")


def _fit(call: Call) -> None:
    from trainer.fit import fit

    fit(
        call.run, **call.options, flag=call.flag, processes=call.processes, console=call.console, progress=call.progress
    )


def _validate_options(parser: ArgumentParser) -> None:
    # What each is: trainer/evaluation/command.py. RUN is the folder of results where a model is named.
    parser.add_argument("--checkpoint", type=Path, help="checkpoint directory; the newest if left out")
    parser.add_argument("--model")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--shards", nargs="+", default=())
    parser.add_argument("--image-sizes", type=int, nargs="+", default=())
    parser.add_argument("--crop-pcts", type=float, nargs="+", default=())
    parser.add_argument("--real-labels")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--overrides", nargs="+", default=())


def _validate(call: Call) -> None:
    from trainer.evaluation.command import Request, validate

    validate(
        Request(run=call.run.path, **call.options),
        processes=call.processes,
        console=call.console,
        progress=call.progress,
    )


def _predict_options(parser: ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="checkpoint directory; the newest if left out")
    parser.add_argument("--inputs", type=Path, required=True, help="file of JSON: paths and listed")
    parser.add_argument("--raw", action="store_true", help="the raw weights, not their average")
    parser.add_argument("--top-k", type=int, required=True, help="classes of each image")
    parser.add_argument("--batch-size", type=int, help="images at once; the run's own if left out")
    parser.add_argument("--out", type=Path, help="file for the answers")
    parser.add_argument("--contact-sheet", type=Path, help="PNG of images with their answers")


def _predict(call: Call) -> None:
    from trainer.predicting.command import predict

    predict(call.run, **call.options, processes=call.processes, console=call.console, progress=call.progress)


def _export_options(parser: ArgumentParser) -> None:
    parser.add_argument("--out-dir", type=Path)
    parser.add_argument("--raw", action="store_true", help="the raw weights, not their average")
    parser.add_argument("--checkpoint", type=Path, action="append", default=[])
    parser.add_argument("--average", type=int, help="mean over so many of the newest checkpoints")
    parser.add_argument("--bn-samples", type=int, help="training images for a mean's BatchNorm statistics")
    parser.add_argument("--format", action="append", default=[], dest="formats")
    parser.add_argument("--tolerance", type=float, required=True, help="share of the largest logit")
    parser.add_argument("--calibration-samples", type=int, required=True, help="images that set int8's ranges")
    parser.add_argument("--test-samples", type=int, required=True, help="images that int8 is tried on")


def _export(call: Call) -> None:
    from trainer.export import export

    export(call.run, **call.options, console=call.console, progress=call.progress)


def _doctor(call: Call) -> None:
    from trainer.doctor.examination import doctor

    doctor(call.run, log_dir=call.log_dir, processes=call.processes, console=call.console)


def _tune_options(parser: ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, required=True, help="optimizer steps, of each size")
    parser.add_argument("--result", type=Path, required=True, help="file of JSON to write")


def _tune_lr_options(parser: ArgumentParser) -> None:
    _tune_options(parser)
    parser.add_argument("--min-lr", type=float, required=True, help="learning rate of the first step")
    parser.add_argument("--max-lr", type=float, required=True, help="learning rate of the last step")
    parser.add_argument("--plot", type=Path, help="PNG to draw")


def _tune_lr(call: Call) -> None:
    from trainer.tuning.learning_rate import tune_learning_rate

    tune_learning_rate(call.run, **call.options, processes=call.processes, console=call.console, progress=call.progress)


def _tune_batch_size_options(parser: ArgumentParser) -> None:
    _tune_options(parser)
    parser.add_argument("--sizes", type=int, nargs="+", required=True, help="micro-batch sizes, ascending")
    parser.add_argument("--world-size", type=int, required=True, help="devices of the run")


def _tune_batch_size(call: Call) -> None:
    from trainer.tuning.batch_size import tune_batch_size

    tune_batch_size(call.run, **call.options, console=call.console, progress=call.progress)


COMMANDS: Final = {
    "fit": Command(_fit_options, _fit),
    "validate": Command(_validate_options, _validate),
    "export": Command(_export_options, _export),
    "predict": Command(_predict_options, _predict),
    "doctor": Command(lambda _: None, _doctor, when_quiet="write the report to RUN/preflight.json alone"),
    "tune-lr": Command(_tune_lr_options, _tune_lr),
    "tune-batch-size": Command(_tune_batch_size_options, _tune_batch_size),
}
