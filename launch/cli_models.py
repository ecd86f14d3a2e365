"""Commands of ``effnet`` about what a run has trained: files of it for other programs, and its answers."""

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from configs.problems import ConfigError, Problem

Run = Annotated[str, typer.Argument(help="Run directory, run id, or the beginning of one.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress: results and errors alone.")]
Raw = Annotated[bool, typer.Option("--raw", help="The raw weights instead of their average.")]


class Format(StrEnum):
    """A graph of the network, for other programs."""

    ONNX = "onnx"
    ONNX_INT8 = "onnx-int8"
    TORCH_EXPORT = "torch-export"
    TORCHSCRIPT = "torchscript"


def export(
    run: Run,
    formats: Annotated[
        list[Format] | None, typer.Option("--format", help="A graph beside the weights; may be given several times.")
    ] = None,
    checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="Checkpoint directory; the newest if left out, the mean of several."),
    ] = None,
    average: Annotated[int | None, typer.Option(min=2, help="Mean over so many of the newest checkpoints.")] = None,
    bn_samples: Annotated[
        int | None,
        typer.Option(min=1, help="Training images over which a mean's BatchNorm statistics are estimated anew."),
    ] = None,
    out_dir: Annotated[Path | None, typer.Option(help="Folder to write to; RUN/export if left out.")] = None,
    raw: Raw = False,
    tolerance: Annotated[
        float, typer.Option(min=0, help="Most that a graph's logits may differ, as a share of the largest.")
    ] = 1e-3,
    calibration_samples: Annotated[int, typer.Option(min=1, help="Training images that set the ranges of int8.")] = 512,
    test_samples: Annotated[int, typer.Option(min=1, help="Validation images on which int8 is tried.")] = 5000,
    quiet: Quiet = False,
) -> None:
    """Write a run's weights for timm and Hugging Face, with a model card; as ONNX and graphs of torch where asked."""
    from launch import fit as local

    if average is not None and checkpoint:
        received, accepted = str(average), "none beside --checkpoint: the mean is over those that are named"
        raise ConfigError([Problem(key="--average", received=received, accepted=accepted)])
    if bn_samples is not None and average is None and len(checkpoint or ()) < 2:
        received, accepted = str(bn_samples), "nothing, or --average N: one checkpoint has statistics of its own"
        raise ConfigError([Problem(key="--bn-samples", received=received, accepted=accepted)])
    options = [f"--format={each}" for each in formats or ()]
    options += [f"--checkpoint={each}" for each in checkpoint or ()]
    options += [f"--average={average}"] if average is not None else []
    options += [f"--bn-samples={bn_samples}"] if bn_samples is not None else []
    options += [f"--out-dir={out_dir}"] if out_dir is not None else []
    options += [*(["--raw"] if raw else []), *(["--quiet"] if quiet else [])]
    options += [f"--tolerance={tolerance}", f"--calibration-samples={calibration_samples}"]
    raise typer.Exit(local.on_run("export", run, [*options, f"--test-samples={test_samples}"]))


def predict(
    run: Run,
    paths: Annotated[
        list[str], typer.Argument(help="Images, folders, globs, shards; - for a list on stdin.", metavar="PATHS...")
    ],
    out: Annotated[Path | None, typer.Option(help="File for all answers: .csv, .jsonl or .parquet.")] = None,
    contact_sheet: Annotated[
        Path | None, typer.Option("--contact-sheet", help="PNG of up to 48 of the images with their answers.")
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", min=1, help="Classes of each image.")] = 5,
    checkpoint: Annotated[Path | None, typer.Option(help="Checkpoint directory; the newest if left out.")] = None,
    raw: Raw = False,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Images at once on a device; the run's eval_batch_size if left out.")
    ] = None,
    devices: Annotated[int | None, typer.Option(min=1, help="Processes; one a GPU, or one, if left out.")] = None,
    quiet: Quiet = False,
) -> None:
    """Say what images show: class, probability, top-k. A bad image is named, skipped and counted."""
    from launch import prediction

    options = [f"--top-k={top_k}", *(["--raw"] if raw else []), *(["--quiet"] if quiet else [])]
    given = {"checkpoint": checkpoint, "contact-sheet": contact_sheet, "batch-size": batch_size}
    options += [f"--{name}={value}" for name, value in given.items() if value is not None]
    code = prediction.predict(run, paths, stdin=sys.stdin, devices=devices, out=out, options=options)
    raise typer.Exit(code)


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``effnet``."""
    app.command()(export)
    app.command()(predict)
