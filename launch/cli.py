"""The ``effnet`` command. Each command imports what it needs when it runs: help comes at once, and without torch."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from launch import cli_jobs, cli_models
from launch.cli_models import Quiet
from launch.cli_tune import tune_app

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train EfficientNets on one machine or many, and never lose or repeat a sample doing it.",
)
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

ConfigFiles = Annotated[list[str] | None, typer.Option("--config", "-c", help="YAML file; later ones win.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as trainer.max_epochs=5", metavar="[KEY=VALUE]...")
]
Run = Annotated[str, typer.Argument(help="Run directory, run id, or the beginning of one.")]
Checkpoint = Annotated[Path | None, typer.Option(help="Checkpoint directory; the newest if left out.")]


@app.command()
def fit(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    run: Annotated[str | None, typer.Option(help="Go on with an existing run.")] = None,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start again after failures, so often in a row without a new checkpoint.")
    ] = 0,
    quiet: Quiet = False,
) -> None:
    """Train on this machine's devices. The same command goes on where it stopped."""
    from launch import fit as local

    raise typer.Exit(local.fit(config or [], overrides or [], run, max_restarts=max_restarts, quiet=quiet))


@app.command()
def validate(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="RUN|MODEL|FILE",
            help="Run (directory, id, or the beginning of one) or checkpoint directory; timm's name of a model with "
            "published weights, hf-hub:… or local-dir:…; or a file of weights, with --model.",
        ),
    ],
    overrides: Overrides = None,
    checkpoint: Checkpoint = None,
    model: Annotated[str | None, typer.Option(help="timm's name of the network that a file of weights is of.")] = None,
    shards: Annotated[
        list[str] | None, typer.Option(help="Shards or their list, as data.val_shards takes them; the run's own.")
    ] = None,
    image_size: Annotated[str | None, typer.Option(help="Sides of images, such as 224,256; the subject's own.")] = None,
    crop_pct: Annotated[
        str | None, typer.Option(help="Shares of an image, such as 0.875,1; the subject's own.")
    ] = None,
    real_labels: Annotated[
        str | None,
        typer.Option(help="Other labels by name: ImageNet-ReaL's real.json, imagenet for timm's copy of it."),
    ] = None,
    devices: Annotated[int | None, typer.Option(help="Processes; one a GPU, or one, if left out.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of results; the run's if left out.")] = None,
    quiet: Quiet = False,
) -> None:
    """Evaluate on a split, each sample once: accuracy, loss, calibration, classes, confusion; raw and averaged."""
    from launch import validation

    options = validation.Options(
        checkpoint=checkpoint,
        model=model,
        shards=tuple(shards or ()),
        image_size=image_size,
        crop_pct=crop_pct,
        real_labels=real_labels,
        devices=devices,
        out=out,
        overrides=tuple(overrides or ()),
        quiet=quiet,
    )
    raise typer.Exit(validation.validate(subject, options))


@app.command()
def plan(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Training samples, where no index says.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one object of JSON.")] = False,
) -> None:
    """Say what a run will need, before anything runs: memory, time, network, storage, and what it will wait for."""
    from launch import planning

    raise typer.Exit(planning.plan(config or [], overrides or [], samples=samples, as_json=as_json))


@app.command("config")
def show_config(overrides: Overrides = None, config: ConfigFiles = None) -> None:
    """Print the resolved configuration, each value with its origin."""
    from configs.load import leaves, load_config

    resolved = load_config(config or [], overrides or [])
    for key, value in leaves(resolved.config).items():
        typer.echo(f"{key}: {json.dumps(value, ensure_ascii=False)}  # {resolved.origins.get(key, 'default')}")


@app.command()
def doctor(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as data.")] = False,
) -> None:
    """Say what of this machine would stop a run: versions, devices, network, disks, shards, limits."""
    from launch.doctor import doctor as examine

    raise typer.Exit(examine(config or [], overrides or [], as_json=as_json))


@app.command(context_settings=PASS_ON, add_help_option=False)
def shards(context: typer.Context) -> None:
    """Make and check WebDataset shards (build, verify, info, index, digits, python-texts, spoken-digits)."""
    os.execv(sys.executable, [sys.executable, "-m", "datamodules", *context.args])


@app.command()
def sweep(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    sweep: Annotated[str | None, typer.Option(help="Sweep file, in W&B's format: registers a new one.")] = None,
    sweep_id: Annotated[str | None, typer.Option("--id", help="ENTITY/PROJECT/ID of one that there is.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Most trials of an agent.")] = None,
    slurm: Annotated[bool, typer.Option("--slurm", help="Submit an array of agents to Slurm.")] = False,
    agents: Annotated[int, typer.Option(min=1, help="Tasks of that array.")] = 1,
    max_failures: Annotated[int, typer.Option(min=1, help="Trials that may fail in a row.")] = 3,
    max_restarts: Annotated[int, typer.Option(min=0, help="Restarts of each trial, as of effnet fit.")] = 0,
    runs_dir: Annotated[str | None, typer.Option(help="With --id: folder of run directories.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; register nothing.")] = False,
    quiet: Quiet = False,
) -> None:
    """Search over settings: register a W&B sweep, and train its trials here or on Slurm."""
    from launch.sweeps import sweep as sweeps

    options = sweeps.Options(
        count=count, agents=agents, max_failures=max_failures, max_restarts=max_restarts, quiet=quiet
    )
    sweeps.check_options(sweep, sweep_id, options, slurm=slurm, runs_dir=runs_dir)
    if sweep is not None:
        code = sweeps.new(sweep, config or [], overrides or [], options, slurm=slurm, dry_run=dry_run)
    else:
        given = (config or [], overrides or [])
        code = sweeps.join(str(sweep_id), *given, options, runs_dir=runs_dir, slurm=slurm, dry_run=dry_run)
    raise typer.Exit(code)


cli_models.add_to(app)
cli_jobs.add_to(app)
app.add_typer(tune_app, name="tune")


def main() -> None:
    """Run a command; a mistake of the user's is one message and exit code 93; a full disk, a server away one and 1."""
    try:
        app(prog_name="effnet")
    except Exception as error:
        from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_RETRY
        from configs.problems import ConfigError, DataError, UnreachableError
        from launch.disk import fault_of_disk
        from launch.lock import RunInProgressError

        fault = fault_of_disk(error)
        known = (ConfigError, DataError, UnreachableError, RunInProgressError)
        if fault is None and not isinstance(error, known):
            raise
        typer.secho(f"error: {fault or error}", fg="red", err=True)
        sys.exit(EXIT_DO_NOT_RETRY if isinstance(error, (ConfigError, DataError)) else EXIT_RETRY)


if __name__ == "__main__":
    main()
