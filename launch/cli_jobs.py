"""Commands of ``effnet`` about jobs: launching them, looking at them, ending them."""

from typing import Annotated

import typer

ConfigFiles = Annotated[list[str] | None, typer.Option("--config", "-c", help="YAML file; later ones win.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as trainer.num_nodes=4", metavar="[KEY=VALUE]...")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; write and submit nothing.")]
Run = Annotated[str, typer.Argument(help="Run directory, run id, or the beginning of one.")]

launch_app = typer.Typer(no_args_is_help=True, help="Render a job from the configuration, and submit it.")


@launch_app.command("local")
def launch_local(overrides: Overrides = None, config: ConfigFiles = None, dry_run: DryRun = False) -> None:
    """Train on this machine, by a snapshot of the code as it is now."""
    from launch import submission

    raise typer.Exit(submission.launch_local(config or [], overrides or [], dry_run=dry_run))


@launch_app.command("slurm")
def launch_slurm(overrides: Overrides = None, config: ConfigFiles = None, dry_run: DryRun = False) -> None:
    """Submit a batch job to Slurm."""
    from launch import submission

    raise typer.Exit(submission.launch_slurm(config or [], overrides or [], dry_run=dry_run))


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``effnet``."""
    app.add_typer(launch_app, name="launch")
