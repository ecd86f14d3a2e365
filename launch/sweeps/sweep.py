"""``effnet sweep``: from a sweep file to a sweep that is registered, and agents that work on it here or on Slurm."""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from configs.changes import identity
from configs.exit_codes import EXIT_DONE
from configs.files import write_atomically
from configs.load import load_config
from configs.problems import ConfigError, Problem
from configs.run import RunDirectory, with_absolute_resume
from configs.schema import Config
from configs.sweep_file import Sweep, load_sweep
from launch.devices import resolve_devices
from launch.fit import check_machine, console, prepare
from launch.job import job_spec
from launch.ledger import Submission, record
from launch.slurm import jobs as slurm_jobs
from launch.snapshot import ROOT, code_files, code_hash, snapshot
from launch.sweeps import slurm_array as sweep_slurm
from launch.sweeps.agent import Agent
from launch.sweeps.folder import LOCAL, SweepFolder, SweepId, find_folder
from launch.sweeps.search import number_of_trials
from launch.sweeps.source import LocalSearch, WandbSource, register

UNREGISTERED = "SWEEP_ID"
"""Stands in a dry run for what W&B will make."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says of agents.

    Attributes:
        count: Most trials of an agent; None is no limit.
        agents: Tasks of the Slurm array.
        max_failures: Trials that may fail in a row.
        max_restarts: Restarts of a trial, as for ``effnet fit``.
        quiet: Whether trials show no progress.
    """

    count: int | None
    agents: int
    max_failures: int
    max_restarts: int
    quiet: bool = False


def check_options(
    sweep_file: str | None, sweep_id: str | None, options: Options, *, slurm: bool, runs_dir: str | None
) -> None:
    """See that the command line's options go together.

    Raises:
        ConfigError: If not.
    """
    problems = []
    if (sweep_file is None) == (sweep_id is None):
        received = "both --sweep and --id" if sweep_file else "neither --sweep nor --id"
        accepted = "--sweep FILE for a new sweep, or --id ENTITY/PROJECT/ID for one that there is"
        problems.append(Problem(key="command line", received=received, accepted=accepted))
    if options.agents > 1 and not slurm:
        accepted = "--slurm beside it: an agent here has this machine for itself"
        problems.append(Problem(key="--agents", received=str(options.agents), accepted=accepted))
    if runs_dir is not None and sweep_file is not None:
        problems.append(Problem(key="--runs-dir", received=runs_dir, accepted="runs_dir=… for a new sweep"))
    if problems:
        raise ConfigError(problems)


def new(
    sweep_file: str, files: Sequence[str], overrides: Sequence[str], options: Options, *, slurm: bool, dry_run: bool
) -> int:
    """Register a sweep and work on it; returns the exit code.

    Raises:
        ConfigError: For any mistake in either file, before anything is registered or written.
    """
    sweep, resolved = load_sweep(sweep_file, files, overrides)
    config = with_absolute_resume(resolved.config, Path.cwd())
    runs_dir = Path(config.runs_dir).expanduser()
    _check_place(config, slurm=slurm)
    local = config.tracking.mode != "online"
    if local:
        number_of_trials(sweep)
        text = json.dumps([dict(sweep.document), identity(config)], sort_keys=True)
        sweep_id = SweepId(name=LOCAL + hashlib.sha256(text.encode()).hexdigest()[:8])
    elif dry_run:
        entity = config.tracking.entity or "ENTITY"
        sweep_id = SweepId(name=UNREGISTERED, entity=entity, project=config.tracking.project)
    folder = None if dry_run or not local else SweepFolder(runs_dir=runs_dir, id=sweep_id)
    if dry_run:
        shown = SweepFolder(runs_dir=runs_dir, id=sweep_id)
        sys.stdout.write(_script(shown, config, options) if slurm else _document(sweep, shown, options))
        return EXIT_DONE
    if folder is None:
        if slurm:  # what cannot be submitted is not registered
            _script(SweepFolder(runs_dir=runs_dir, id=SweepId(name=UNREGISTERED)), config, options)
        sweep_id, url = register(sweep, entity=config.tracking.entity, project=config.tracking.project)
        folder = SweepFolder(runs_dir=runs_dir, id=sweep_id)
        _say(url)
    folder.create(sweep, config)
    _say(f"sweep {folder.id}, in {folder.path}")
    return _submit(folder, config, options) if slurm else _work(folder, options)


def join(
    name: str,
    files: Sequence[str],
    overrides: Sequence[str],
    options: Options,
    *,
    runs_dir: str | None,
    slurm: bool,
    dry_run: bool,
) -> int:
    """Work on a sweep that exists; returns the exit code.

    Raises:
        ConfigError: If its configuration is not known, or is given though it is.
    """
    sweep_id = SweepId.parse(name)
    given = with_absolute_resume(load_config(files, overrides).config, Path.cwd()) if files else None
    root = Path(runs_dir or (given.runs_dir if given else "runs")).expanduser()
    folder = find_folder(sweep_id, root)
    if folder is None and sweep_id.project is None:
        accepted = f"a sweep in {root} (or --runs-dir): one without a server is its folder, sweep-{sweep_id.name}"
        raise ConfigError([Problem(key="--id", received=name, accepted=accepted)])
    if folder is None and given is None:
        accepted = f"the configuration of its trials: {root / f'sweep-{sweep_id.name}'} is not here (or --runs-dir)"
        raise ConfigError([Problem(key="--config", received="nothing", accepted=accepted)])
    if folder is not None and (files or overrides):
        accepted = f"none: {folder.base_file} is the configuration of all its trials"
        raise ConfigError([Problem(key="--config", received=" ".join([*files, *overrides]), accepted=accepted)])
    config = given or load_config([str(SweepFolder(runs_dir=root, id=sweep_id).base_file)]).config
    _check_place(config, slurm=slurm)
    folder = SweepFolder(runs_dir=root, id=sweep_id)
    if dry_run:
        sys.stdout.write(_script(folder, config, options) if slurm else shlex.join(_agent(folder, options)) + "\n")
        return EXIT_DONE
    folder.create(None, config)
    return _submit(folder, config, options) if slurm else _work(folder, options)


def _work(folder: SweepFolder, options: Options) -> int:
    """Be an agent."""
    agent = Agent(
        folder=folder,
        max_trials=options.count,
        max_failures=options.max_failures,
        max_restarts=options.max_restarts,
        quiet=options.quiet,
        console=console,
    )
    if folder.id.project is None:
        sweep = folder.sweep()
        if sweep is None:
            accepted = f"a sweep whose file is in {folder.path / 'sweep.json'}"
            raise ConfigError([Problem(key="--id", received=str(folder.id), accepted=accepted)])
        return agent.work(LocalSearch(sweep, folder))
    with WandbSource(folder) as source:
        return agent.work(source)


def _submit(folder: SweepFolder, config: Config, options: Options) -> int:
    """Hand agents to Slurm."""
    script = _script(folder, config, options)
    if config.data.prepare is not None:
        prepare(config, quiet=options.quiet)
    run = RunDirectory(Path.cwd() / folder.path)  # the ledger and the code of a job, as a run has them
    snapshot(run)
    artefact = run.launch_dir / "slurm.sh"
    write_atomically(artefact, script)
    job_id = slurm_jobs.submit(script)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    record(run, Submission(time=now, engine="slurm", job_id=job_id, artefact=str(artefact)))
    _say(f"job {job_id}, an array of {options.agents}\nnext\n  effnet runs --runs-dir {folder.runs_dir}")
    _say(f"  scancel --batch --signal=USR1 {job_id}    # checkpoints and ends; the same command goes on")
    return EXIT_DONE


def _script(folder: SweepFolder, config: Config, options: Options) -> str:
    path = Path.cwd() / folder.path
    code_dir = RunDirectory(path).launch_dir / f"code-{code_hash(ROOT, code_files())}"
    spec = job_spec(config, code_dir=code_dir, work_dir=Path.cwd(), environment=os.environ)
    spec = replace(spec, run_dir=path, run_id=path.name)
    return sweep_slurm.render(
        spec, config.launch.slurm, agents=options.agents, command=_agent(folder, options, path.parent)[1:]
    )


def _agent(folder: SweepFolder, options: Options, runs_dir: Path | None = None) -> list[str]:
    """The command of an agent."""
    words = [
        sys.executable,
        "-m",
        "launch.cli",
        "sweep",
        f"--id={folder.id}",
        f"--runs-dir={runs_dir or folder.runs_dir}",
    ]
    words += [f"--count={options.count}"] if options.count is not None else []
    words += ["--quiet"] if options.quiet else []
    return [*words, f"--max-failures={options.max_failures}", f"--max-restarts={options.max_restarts}"]


def _document(sweep: Sweep, folder: SweepFolder, options: Options) -> str:
    """What W&B would be given, and the agent's command after it."""
    text = json.dumps(dict(sweep.document), indent=2, ensure_ascii=False)
    return f"{text}\n{shlex.join(_agent(folder, options))}\n"


def _check_place(config: Config, *, slurm: bool) -> None:
    problems = []
    if config.run_id is not None:
        accepted = "null: each trial has an id of its own"
        problems.append(Problem(key="run_id", received=config.run_id, accepted=accepted))
    if problems:
        raise ConfigError(problems)
    if not slurm:
        check_machine(config, resolve_devices(config))


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False)
