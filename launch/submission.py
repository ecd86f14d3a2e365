"""``effnet launch``: from a configuration to a job that is submitted, or printed."""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from configs.exit_codes import EXIT_DONE
from configs.files import write_atomically
from configs.load import Resolved, load_config
from configs.run import PREFLIGHT, RunDirectory, with_absolute_resume
from configs.schema import Config
from launch.devices import resolve_devices
from launch.engines import refuse_if_submitted
from launch.fit import check_machine, console, fit, of_run, prepare, say_how_it_ended
from launch.inbox import SignalInbox
from launch.job import JobSpec, job_spec, with_preflight, with_quiet
from launch.ledger import Submission, record, withdraw_cancellation
from launch.lock import locked
from launch.slurm import jobs as slurm_jobs
from launch.slurm import script as slurm
from launch.snapshot import ROOT, code_files, code_hash, snapshot
from launch.ssh import rendering as ssh
from launch.ssh.attempts import SshAttempts
from launch.ssh.hostfile import hosts_of


def launch_slurm(
    files: Sequence[str],
    overrides: Sequence[str],
    run_name: str | None,
    *,
    dry_run: bool,
    preflight: bool = False,
    quiet: bool = False,
) -> int:
    """Submit a run to Slurm, or print the script; returns the exit code.

    Raises:
        ConfigError: For any mistake, before anything is written.
    """
    resolved = _load(files, overrides, run_name)
    config = resolved.config
    run, spec = _plan(config, preflight=preflight)
    script = slurm.render(with_quiet(spec) if quiet else spec, config.launch.slurm)
    if dry_run:
        sys.stdout.write(script)
        return EXIT_DONE
    if not _prepared(run, resolved, engine="slurm", quiet=quiet):
        return EXIT_DONE
    assert snapshot(run) == spec.code_dir
    artefact = run.launch_dir / "slurm.sh"
    write_atomically(artefact, script)
    withdraw_cancellation(run)
    job_id = slurm_jobs.submit(script)
    record(run, Submission(time=_now(), engine="slurm", job_id=job_id, artefact=str(artefact)))
    _hint_at_wandb(config)
    text = f"{run.run_id}: job {job_id}\nnext\n"
    text += "".join(f"  effnet {verb} {run.path}\n" for verb in ("status", "logs --follow", "cancel"))
    console.print(text, highlight=False, markup=False, end="")
    return EXIT_DONE


def launch_ssh(
    files: Sequence[str],
    overrides: Sequence[str],
    run_name: str | None,
    *,
    dry_run: bool,
    preflight: bool = False,
    quiet: bool = False,
) -> int:
    """Train on hosts that are reached by ssh, to the end or until a signal, or print what would be run there.

    Raises:
        ConfigError: For any mistake, before anything is written; for a host that would not train, before ranks start.
    """
    started = time.time()
    resolved = _load(files, overrides, run_name)
    config = resolved.config
    hosts = hosts_of(config)
    run, spec = _plan(config, preflight=preflight)
    plan = ssh.render(spec, config.launch.ssh, hosts)
    if dry_run:
        sys.stdout.write(plan)
        return EXIT_DONE
    if not _prepared(run, resolved, quiet=quiet):
        return EXIT_DONE
    with locked(run), SignalInbox() as inbox:
        assert snapshot(run) == spec.code_dir
        write_atomically(run.launch_dir / "ssh.json", plan)
        attempts = SshAttempts(
            config=config,
            run=run,
            spec=spec,
            hosts=hosts,
            inbox=inbox,
            started=started,
            console=console,
            streams=not quiet,
        )
        result = attempts.run_all()
    say_how_it_ended(result, run, command="effnet launch ssh")
    return int(result["exit_code"])


def launch_local(
    files: Sequence[str],
    overrides: Sequence[str],
    run_name: str | None,
    *,
    dry_run: bool,
    preflight: bool = False,
    max_restarts: int = 0,
    quiet: bool = False,
) -> int:
    """Train here, by a snapshot of the code: goes on as ``effnet fit --run`` with it.

    Raises:
        ConfigError: For any mistake, before anything is written.
    """
    resolved = _load(files, overrides, run_name)
    config = resolved.config
    check_machine(config, resolve_devices(config))
    run = RunDirectory.of(config)
    code_dir = run.path.absolute() / "launch" / f"code-{code_hash(ROOT, code_files())}"
    variables = {"PYTHONPATH": str(code_dir), "PYTHONSAFEPATH": "1"}
    variables |= {PREFLIGHT: "1"} if preflight else {}
    command = [sys.executable, "-m", "launch.cli", "fit", "--run", str(run.path)]
    command += [*([f"--max-restarts={max_restarts}"] if max_restarts else []), *(["--quiet"] if quiet else [])]
    if dry_run:
        words = [*(f"{name}={value}" for name, value in variables.items()), *command]
        sys.stdout.write(shlex.join(["env", *words]) + "\n")
        return EXIT_DONE
    if not _prepared(run, resolved, quiet=quiet):
        return EXIT_DONE
    snapshot(run)
    # This process has the launcher's part of the same code loaded: starting it again costs a third of a second.
    os.environ.update(variables)
    return fit([], [], str(run.path), max_restarts=max_restarts, quiet=quiet)


def _load(files: Sequence[str], overrides: Sequence[str], run: str | None) -> Resolved:
    if run is not None:
        files, overrides = of_run(run, files, overrides)
    resolved = load_config(files, overrides)
    return replace(resolved, config=with_absolute_resume(resolved.config, Path.cwd()))


def _plan(
    config: Config, environment: Mapping[str, str] = os.environ, *, preflight: bool = False
) -> tuple[RunDirectory, JobSpec]:
    """The run and its job; nothing is written yet."""
    run = RunDirectory.of(config)
    work_dir = Path.cwd()
    code_dir = RunDirectory(work_dir / run.path).launch_dir / f"code-{code_hash(ROOT, code_files())}"
    run.check(config)
    spec = job_spec(config, code_dir=code_dir, work_dir=work_dir, environment=environment)
    return RunDirectory(work_dir / run.path), with_preflight(spec) if preflight else spec


def _prepared(run: RunDirectory, resolved: Resolved, *, engine: str | None = None, quiet: bool = False) -> bool:
    """Freeze the configuration and make what jobs share; false if the run is done.

    Raises:
        RunInProgressError: If a launcher of this machine is at work on the run, or a job of another engine than this.
    """
    config = resolved.config
    run.check(config)
    past = run.outcomes()
    if past and past[-1]["exit_code"] == EXIT_DONE:
        console.print(f"{run.path} is done", highlight=False, markup=False)
        return False
    run.create()
    with locked(run):
        refuse_if_submitted(run, engine=engine)
        run.freeze(config)
        run.keep_origins(resolved.origins)
        if config.data.prepare is not None:
            prepare(config, quiet=quiet)
        run.wandb_id()
        run.launch_dir.mkdir(exist_ok=True)
    return True


def _hint_at_wandb(config: Config) -> None:
    if config.tracking.mode == "online" and "WANDB_API_KEY" in os.environ:
        text = "WANDB_API_KEY stays here: on the nodes W&B reads ~/.netrc, which `wandb login` writes."
        console.print(text, style="yellow", highlight=False)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
