"""Commands of ``effnet tune``: settings that are found by trying them."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli_jobs import ConfigFiles, Overrides
from launch.cli_models import Quiet

tune_app = typer.Typer(no_args_is_help=True, help="Find a learning rate or a micro-batch size by trying.")


@tune_app.command("lr")
def tune_lr(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    min_lr: Annotated[float, typer.Option(help="Learning rate of the first step.")] = 1e-6,
    max_lr: Annotated[float, typer.Option(help="Learning rate of the last step.")] = 10.0,
    steps: Annotated[int, typer.Option(help="Optimizer steps between them.")] = 100,
    out: Annotated[Path | None, typer.Option(help="PNG of the curve.")] = None,
    quiet: Quiet = False,
) -> None:
    """Raise the learning rate from step to step, and say where the loss falls fastest."""
    from launch import tuning

    given = (config or [], overrides or [])
    raise typer.Exit(tuning.tune_lr(*given, min_lr=min_lr, max_lr=max_lr, steps=steps, out=out, quiet=quiet))


@tune_app.command("batch-size")
def tune_batch_size(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    min_size: Annotated[int, typer.Option(help="Smallest micro-batch to try.")] = 1,
    max_size: Annotated[int | None, typer.Option(help="Largest; the device's share if left out.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps that are timed for each size.")] = 5,
    quiet: Quiet = False,
) -> None:
    """Say how fast each micro-batch size is, what memory it takes, and which fit."""
    from launch import tuning

    given = (config or [], overrides or [])
    code = tuning.tune_batch_size(*given, min_size=min_size, max_size=max_size, steps=steps, quiet=quiet)
    raise typer.Exit(code)
