"""Commands of ``effnet`` about jobs: launching them, looking at them, ending them."""

from pathlib import Path
from typing import Annotated

import typer

from launch.cli_models import Quiet

ConfigFiles = Annotated[list[str] | None, typer.Option("--config", "-c", help="YAML file; later ones win.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value, such as trainer.num_nodes=4", metavar="[KEY=VALUE]...")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be sent; write and submit nothing.")]
Preflight = Annotated[bool, typer.Option("--preflight", help="Examine all nodes before training (docs/doctor.md).")]
ExistingRun = Annotated[str | None, typer.Option("--run", help="Go on with an existing run.")]
Run = Annotated[str, typer.Argument(help="Run directory, run id, or the beginning of one.")]

launch_app = typer.Typer(no_args_is_help=True, help="Render a job from the configuration, and submit it.")


@launch_app.command("local")
def launch_local(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    run: ExistingRun = None,
    dry_run: DryRun = False,
    preflight: Preflight = False,
    quiet: Quiet = False,
    max_restarts: Annotated[
        int, typer.Option(min=0, help="Start again after failures, so often in a row without a new checkpoint.")
    ] = 0,
) -> None:
    """Train on this machine, by a snapshot of the code as it is now."""
    from launch import submission

    how = {"dry_run": dry_run, "preflight": preflight, "quiet": quiet}
    code = submission.launch_local(config or [], overrides or [], run, **how, max_restarts=max_restarts)
    raise typer.Exit(code)


@launch_app.command("slurm")
def launch_slurm(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    run: ExistingRun = None,
    dry_run: DryRun = False,
    preflight: Preflight = False,
    quiet: Quiet = False,
) -> None:
    """Submit a batch job to Slurm."""
    from launch import submission

    how = {"dry_run": dry_run, "preflight": preflight, "quiet": quiet}
    raise typer.Exit(submission.launch_slurm(config or [], overrides or [], run, **how))


@launch_app.command("ssh")
def launch_ssh(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    run: ExistingRun = None,
    dry_run: DryRun = False,
    preflight: Preflight = False,
    quiet: Quiet = False,
) -> None:
    """Train on hosts that ssh reaches, by a snapshot of the code; ends when they do."""
    from launch import submission

    how = {"dry_run": dry_run, "preflight": preflight, "quiet": quiet}
    raise typer.Exit(submission.launch_ssh(config or [], overrides or [], run, **how))


@launch_app.command("kubernetes")
def launch_kubernetes(
    overrides: Overrides = None,
    config: ConfigFiles = None,
    run: ExistingRun = None,
    dry_run: DryRun = False,
    preflight: Preflight = False,
) -> None:
    """Submit a job to Kubernetes."""
    from launch.kubernetes import submission as kubernetes_submission

    how = {"dry_run": dry_run, "preflight": preflight}
    raise typer.Exit(kubernetes_submission.launch_kubernetes(config or [], overrides or [], run, **how))


def status(run: Run) -> None:
    """Show how a run is: state, step, speed, checkpoint, attempts."""
    from rich.console import Console

    from configs.run import RunDirectory
    from launch.inspection import show_status

    show_status(RunDirectory.find(run), Console())


def logs(
    run: Run,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Wait for more, until the run has ended.")] = False,
    rank: Annotated[int | None, typer.Option(min=0, help="Only this rank; all of them if left out.")] = None,
    attempt: Annotated[int | None, typer.Option(min=0, help="Number of the attempt; the last if left out.")] = None,
) -> None:
    """Print what the ranks wrote, by time, each line with its rank."""
    from configs.run import RunDirectory
    from launch.inspection import is_active
    from launch.kubernetes.logs import job_with_logs_elsewhere, show_pod_logs
    from launch.reading_logs import show_logs

    found = RunDirectory.find(run)
    job_id = job_with_logs_elsewhere(found)
    if job_id is not None:
        show_pod_logs(job_id, typer.echo, rank=rank, follow=follow)
        return
    show_logs(found, typer.echo, rank=rank, attempt=attempt, follow=follow, active=lambda: is_active(found))


def cancel(
    run: Run, now: Annotated[bool, typer.Option("--now", help="Kill it, without a checkpoint.")] = False
) -> None:
    """End a run's job: it checkpoints first, and goes on when it is launched again."""
    from configs.run import RunDirectory
    from launch.cancelling import cancel

    typer.echo(cancel(RunDirectory.find(run), now=now))


def runs(
    runs_dir: Annotated[Path, typer.Option(help="Folder of run directories.")] = Path("runs"),
) -> None:
    """List the runs in a folder."""
    from rich.console import Console

    from launch.inspection import show_runs

    show_runs(runs_dir, Console())


def report(
    run: Annotated[
        list[str], typer.Argument(help="Run directories, run ids, or beginnings of them.", metavar="RUN...")
    ],
    out: Annotated[Path | None, typer.Option(help="File to write; RUN/report.html if left out.")] = None,
) -> None:
    """Write an HTML page of a run: curves, attempts, configuration; of several runs, compared."""
    from launch.reporting.command import write_report

    typer.echo(write_report(run, out=out))


def add_to(app: typer.Typer) -> None:
    """Add these commands to ``effnet``."""
    app.add_typer(launch_app, name="launch")
    for command in (status, logs, cancel, runs, report):
        app.command()(command)
