"""``effnet tune``: has ranks started that try settings, in a temporary folder, and prints what came of it as JSON."""

import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.exit_codes import EXIT_DONE
from configs.files import write_atomically
from configs.load import dump_yaml, load_config
from configs.problems import ConfigError, Problem, shown
from configs.run import RunDirectory
from configs.schema import Config
from launch.devices import count_cores, count_gpus, resolve_devices
from launch.fit import check_machine, console, prepare
from launch.inbox import SignalInbox
from launch.supervisor import GRACE_S, agent_environment, described, outcome, run_command, trainer_command
from launch.temporary import COMPILED

FEWEST_STEPS = 20
"""Of a sweep: with fewer, noise decides."""
PLOT = "plot.png"


def tune_lr(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    min_lr: float,
    max_lr: float,
    steps: int,
    out: Path | None,
    quiet: bool = False,
) -> int:
    """Sweep the learning rate on this machine's devices; returns the exit code.

    Args:
        files: Of the configuration.
        overrides: Over them.
        min_lr: Of the first step.
        max_lr: Of the last.
        steps: Optimizer steps.
        out: PNG to write.
        quiet: Show no progress.

    Raises:
        ConfigError: For all mistakes in options and configuration.
    """
    problems = []
    if not 0 < min_lr < max_lr < float("inf"):
        accepted = "rates above 0, the first below the last"
        problems.append(Problem(key="--min-lr, --max-lr", received=f"{min_lr:g}, {max_lr:g}", accepted=accepted))
    if steps < FEWEST_STEPS:
        problems.append(Problem(key="--steps", received=str(steps), accepted=f"{FEWEST_STEPS} or more"))
    if out is not None and (out.suffix.lower() != ".png" or out.is_dir() or not out.absolute().parent.is_dir()):
        accepted = "a file that ends in .png, in a folder that exists"
        problems.append(Problem(key="--out", received=shown(str(out)), accepted=accepted))
    config = _checked(files, overrides, problems, lambda config: _check_all_here(config, "effnet tune lr"))
    options = (f"--min-lr={min_lr}", f"--max-lr={max_lr}", f"--steps={steps}")
    return _try("tune-lr", config, options, devices=resolve_devices(config), out=out, quiet=quiet)


def tune_batch_size(
    files: Sequence[str],
    overrides: Sequence[str],
    *,
    min_size: int,
    max_size: int | None,
    steps: int,
    quiet: bool = False,
) -> int:
    """Try micro-batch sizes on one device of this machine; returns the exit code.

    Args:
        files: Of the configuration.
        overrides: Over them.
        min_size: Smallest.
        max_size: Largest; None is a device's share of the global batch.
        steps: Optimizer steps that are timed for each.
        quiet: Show no progress.

    Raises:
        ConfigError: For all mistakes in options and configuration.
    """
    problems = []
    if min_size < 1 or (max_size is not None and max_size < min_size):
        received = f"{min_size}, {max_size if max_size is not None else 'left out'}"
        problems.append(Problem(key="--min-size, --max-size", received=received, accepted="1 or more, in order"))
    if steps < 1:
        problems.append(Problem(key="--steps", received=str(steps), accepted="1 or more"))
    config = _checked(files, overrides, problems, _check_one_here)
    devices = resolve_devices(config)
    world_size = devices * config.trainer.num_nodes
    sizes, refused = candidates(config, files, overrides, world_size=world_size)
    sizes = [size for size in sizes if min_size <= size and (max_size is None or size <= max_size)]
    if not sizes:
        reasons = "".join(f"; {size}: {reason}" for size, reason in refused.items())
        accepted = f"a range with a size that divides {config.data.global_batch_size // world_size}{reasons}"
        received = f"{min_size}, {max_size if max_size is not None else 'left out'}"
        raise ConfigError([Problem(key="--min-size, --max-size", received=received, accepted=accepted)])
    for size, reason in refused.items():
        console.print(f"not tried: data.micro_batch_size={size}: {reason}", highlight=False, markup=False)
    if config.trainer.num_threads is None and (config.trainer.accelerator == "cpu" or count_gpus() == 0):
        # One process is tried, with the cores that each of the run's has.
        threads = {"num_threads": max(count_cores() // devices, 1)}
        config = config.model_copy(update={"trainer": config.trainer.model_copy(update=threads)})
    options = (f"--world-size={world_size}", f"--steps={steps}", "--sizes", *map(str, sizes))
    return _try("tune-batch-size", config, options, devices=1, quiet=quiet)


def candidates(
    config: Config, files: Sequence[str], overrides: Sequence[str], *, world_size: int
) -> tuple[list[int], dict[int, str]]:
    """Micro-batch sizes that divide a device's share of the global batch, ascending; and which are no setting, and why.

    Args:
        config: Of ``files`` and ``overrides``.
        files: Of the configuration.
        overrides: Over them.
        world_size: Devices of the run.
    """
    share = config.data.global_batch_size // world_size
    sizes, refused = [], {}
    for size in (size for size in range(1, share + 1) if share % size == 0):
        try:
            load_config(files, [*overrides, f"data.micro_batch_size={size}"])
        except ConfigError as error:
            refused[size] = error.problems[0].accepted
        else:
            sizes.append(size)
    return sizes, refused


def _checked(
    files: Sequence[str], overrides: Sequence[str], problems: list[Problem], check: Callable[[Config], None]
) -> Config:
    """The configuration, if neither it nor the options have problems.

    Raises:
        ConfigError: With those of both.
    """
    config = None
    try:
        config = load_config(files, overrides).config
        check(config)
    except ConfigError as error:
        problems = [*problems, *error.problems]
    if problems or config is None:
        raise ConfigError(problems)
    return config


def _check_all_here(config: Config, command: str) -> None:
    check_machine(config, resolve_devices(config), command=command)


def _check_one_here(config: Config) -> None:
    """That one device of the run is here, and can stand for the others, which need not be.

    Raises:
        ConfigError: If not, or if the global batch has no equal shares.
    """
    world_size = resolve_devices(config) * config.trainer.num_nodes
    problems = []
    if config.data.global_batch_size % world_size:
        received, accepted = str(config.data.global_batch_size), f"a multiple of the run's {world_size} devices"
        problems.append(Problem(key="data.global_batch_size", received=received, accepted=accepted))
    if config.trainer.strategy == "deepspeed":
        accepted = "auto, ddp or single: one device says little of what ZeRO parts among several"
        problems.append(Problem(key="trainer.strategy", received=shown("deepspeed"), accepted=accepted))
    alone = config.trainer.model_copy(update={"devices": 1, "num_nodes": 1})
    try:
        check_machine(config.model_copy(update={"trainer": alone}), 1)
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)


def _try(
    command: str, config: Config, options: Sequence[str], *, devices: int, quiet: bool, out: Path | None = None
) -> int:
    if config.data.prepare is not None:
        prepare(config, quiet=quiet)
    started = time.time()
    with SignalInbox() as inbox, tempfile.TemporaryDirectory(prefix="effnet-tune-") as folder:
        place = RunDirectory(Path(folder))
        log_dir, result = place.log_dir(0), place.path / "result.json"
        log_dir.mkdir(parents=True)
        write_atomically(place.config_file, dump_yaml(config))
        plot = [f"--plot={place.path / PLOT}"] if out is not None else []
        # Nothing stays: not what a trial has compiled, either.
        environment = agent_environment({**os.environ, COMPILED: str(place.path / "compiled")}, timeout_s=GRACE_S)
        arguments = (command, folder, f"--log-dir={log_dir}", f"--result={result}", *plot, *options)
        arguments += ("--quiet",) if quiet else ()
        status = run_command(
            trainer_command(*arguments, devices=devices),
            devices=devices,
            log_dir=log_dir,
            environment=environment,
            inbox=inbox,
        )
        ended = outcome(status, attempt=0, log_dir=log_dir, started=started)
        if ended["exit_code"] == EXIT_DONE:
            if out is not None:
                shutil.copyfile(place.path / PLOT, out)
            sys.stdout.write(result.read_text(encoding="utf-8"))
            return EXIT_DONE
    said = "stopped; nothing is left behind" if inbox.received else described(ended)
    console.print(f"error: {said}", style="red", highlight=False, markup=False)
    return int(ended["exit_code"])
