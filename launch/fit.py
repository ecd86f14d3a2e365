"""``effnet fit`` and ``export``: a run on this machine."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE, EXIT_INTERRUPTED
from configs.load import load_config
from configs.problems import ConfigError, DataError, Problem, shown
from configs.rank_records import rank_errors
from configs.run import RunDirectory, with_absolute_resume
from configs.schema import Config
from launch.attempt import record_lost
from launch.attempts import Attempts
from launch.devices import count_gpus, resolve_devices
from launch.engines import refuse_if_submitted
from launch.inbox import SignalInbox
from launch.lock import locked
from launch.restarts import Restarts
from launch.supervisor import GRACE_S, agent_environment, described, run_command, trainer_command

console = Console(stderr=True, soft_wrap=True)  # paths and commands stay whole, to be copied
PACKAGES = {"audio": ("soundfile", "torchaudio")}
"""What a modality needs beyond effnet itself: the extra of its name."""
LOST = "ended without a word: its launcher was killed, or the machine went down"


def fit(
    files: Sequence[str], overrides: Sequence[str], run: str | None, *, max_restarts: int = 0, quiet: bool = False
) -> int:
    """Train here, to the end or until a signal; returns the exit code.

    Args:
        files: Of the configuration.
        overrides: Over them.
        run: An existing run to go on with.
        max_restarts: Most restarts in a row after failures that left no newer checkpoint.
        quiet: Show no progress.

    Raises:
        ConfigError: For any mistake in the configuration, before anything is written.
    """
    started = time.time()
    if run is not None:
        files, overrides = of_run(run, files, overrides)
    resolved = load_config(files, overrides)
    config = with_absolute_resume(resolved.config, Path.cwd())
    devices = resolve_devices(config)
    check_machine(config, devices)
    directory = RunDirectory.of(config)
    directory.check(config)
    past = directory.outcomes()
    # An attempt whose launcher was killed has left no outcome.
    done = past and past[-1]["exit_code"] == EXIT_DONE and past[-1]["attempt"] >= directory.attempts - 1
    if done and not is_longer(config, directory) and not directory.goes_back(config):
        text = f"{directory.path} is done; see curves.png there, or effnet validate {directory.path}"
        console.print(text, highlight=False, markup=False)
        return EXIT_DONE
    directory.create()
    with locked(directory) as lock:
        refuse_if_submitted(directory)
        directory.freeze(config)
        directory.keep_origins(resolved.origins)
        record_lost(directory, reason=LOST)
        if config.data.prepare is not None:
            prepare(config, quiet=quiet)
        directory.wandb_id()
        with SignalInbox() as inbox:
            attempts = Attempts(
                config=config,
                directory=directory,
                devices=devices,
                lock=lock,
                inbox=inbox,
                started=started,
                console=console,
                quiet=quiet,
            )
            result = attempts.run(Restarts(limit=max_restarts, backoff_s=config.fault.restart_backoff_s))
    say_how_it_ended(result, directory)
    return int(result["exit_code"])


def of_run(run: str, files: Sequence[str], overrides: Sequence[str]) -> tuple[list[str], list[str]]:
    """Files and overrides by which an existing run goes on.

    Raises:
        ConfigError: If there is no such run.
    """
    found = RunDirectory.find(run).path
    found = found if found.name.strip(".") else found.resolve()
    # JSON's quotes are YAML's: a path or an id may look like a number or hold a colon.
    place = {"runs_dir": str(found.parent), "run_id": found.name}
    # What was allowed once was allowed for that once.
    once = ["resume.allow_changes=false"]
    if load_config([str(found / "config.yaml")]).config.resume.checkpoint == "never":
        once.append("resume.checkpoint=auto")  # what is there now is its own
    overrides = [*once, *overrides]
    overrides += (f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in place.items())
    return [str(found / "config.yaml"), *files], overrides


def is_longer(config: Config, directory: RunDirectory) -> bool:
    """Whether a run that is done has further to go by now."""
    ends = ("trainer.max_steps", "trainer.max_epochs")
    return any(change.key in ends for change in directory.changes(config))


def on_run(command: str, run: str, options: Sequence[str]) -> int:
    """Run another command of the trainer on a run's directory, in one process; returns the exit code.

    Raises:
        ConfigError: If there is no such run.
    """
    directory = RunDirectory.find(run)
    return in_processes(command, directory, options, log_dir=directory.path / "logs" / command)


def in_processes(
    command: str, directory: RunDirectory, options: Sequence[str], *, log_dir: Path, devices: int = 1
) -> int:
    """Run a command of the trainer on a directory; says what ended it, and returns the exit code."""
    log_dir.mkdir(parents=True, exist_ok=True)
    for old in log_dir.glob("rank_*"):  # of an earlier call
        old.unlink()
    arguments = (command, str(directory.path), f"--log-dir={log_dir}", *options)
    environment = agent_environment(os.environ, timeout_s=GRACE_S)
    status = run_command(
        trainer_command(*arguments, devices=devices), devices=devices, log_dir=log_dir, environment=environment
    )
    if status == EXIT_DONE:
        return EXIT_DONE
    errors = rank_errors(log_dir)
    reasons = [error["reason"] for error in errors] or [f"ended with status {status}"]
    console.print(f"error: {reasons[0]}\nlog: {log_dir}", style="red", highlight=False, markup=False)
    return int(errors[0]["exit_code"]) if errors else max(status, 1)


def check_machine(config: Config, devices: int, *, command: str = "effnet fit") -> None:
    """See that this machine can train a configuration; ``command`` is what would do so.

    Raises:
        ConfigError: If it cannot.
    """
    problems = [*missing_extra(config)]
    trainer, micro = config.trainer, config.data.micro_batch_size
    if trainer.num_nodes > 1:
        problems.append(
            Problem(
                key="trainer.num_nodes",
                received=str(trainer.num_nodes),
                accepted=f"1: {command} trains on this machine",
            )
        )
    if trainer.accelerator != "cpu":
        gpus = count_gpus()
        if gpus == 0 and trainer.precision == "16-mixed":
            accepted = "32-true or bf16-mixed: no GPU is here"
            problems.append(Problem(key="trainer.precision", received=shown(trainer.precision), accepted=accepted))
        if gpus == 0 and trainer.accelerator == "cuda":
            accepted = "cpu or auto: no GPU is here"
            problems.append(Problem(key="trainer.accelerator", received=shown("cuda"), accepted=accepted))
        if gpus == 0 and config.data.decoder == "nvjpeg":
            accepted = "cpu: no GPU is here"
            problems.append(Problem(key="data.decoder", received=shown("nvjpeg"), accepted=accepted))
        if gpus and devices > gpus:
            accepted = f"at most {gpus}, the GPUs here"
            problems.append(Problem(key="trainer.devices", received=shown(trainer.devices), accepted=accepted))
    if config.data.global_batch_size % (micro * devices):
        size = str(config.data.global_batch_size)
        accepted = f"a multiple of micro_batch_size x devices = {micro} x {devices}"
        problems.append(Problem(key="data.global_batch_size", received=size, accepted=accepted))
    if problems:
        raise ConfigError(problems)


def missing_extra(config: Config) -> Iterator[Problem]:
    """What the modality of a configuration needs and this machine lacks."""
    modality = config.data.modality
    missing = [name for name in PACKAGES.get(modality, ()) if find_spec(name) is None]
    if missing:
        accepted = f"another, or {' and '.join(missing)} beside it: pip install 'effnet[{modality}]'"
        yield Problem(key="data.modality", received=shown(modality), accepted=accepted)


def prepare(config: Config, *, quiet: bool = False) -> None:
    """Make the demo's shards where they are missing; the command itself sees whether they are there."""
    shards = config.data.train_shards
    out_dir = Path(shards if isinstance(shards, str) else shards[0]).parent
    command = [sys.executable, "-m", "datamodules", str(config.data.prepare), str(out_dir)]
    done = subprocess.run([*command, *(["--quiet"] if quiet else [])], check=False)
    if done.returncode:
        raise DataError(f"data.prepare={config.data.prepare} failed with status {done.returncode}")


def say_how_it_ended(result: Mapping[str, object], directory: RunDirectory, *, command: str = "effnet fit") -> None:
    """Tell a person, unless the run is done, which says so itself; ``command`` is what goes on with it."""
    code, where = result["exit_code"], f"logs: {directory.path / 'logs'}"
    if code == EXIT_INTERRUPTED:
        text = f"{result['reason']}. The same command, or {command} --run {directory.path}, goes on."
        console.print(text, style="yellow", highlight=False, markup=False)
    elif code != EXIT_DONE:
        hint = "" if code == EXIT_DO_NOT_RETRY else " The same command tries again from the newest checkpoint."
        # What happened and where comes last, for whoever sees no more than the end.
        text = f"{where}{hint}\nerror: {described(result)}"
        console.print(text, style="red", highlight=False, markup=False)
