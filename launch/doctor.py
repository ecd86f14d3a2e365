"""``effnet doctor``: has ranks started that examine this machine as those of a job would, and says how that ended."""

import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_DONE
from configs.files import write_atomically
from configs.load import dump_yaml, load_config
from configs.run import RunDirectory
from configs.schema import Config
from launch.devices import count_cores, count_gpus, resolve_devices
from launch.fit import console
from launch.supervisor import GRACE_S, agent_environment, described, outcome, run_command, trainer_command

RANKS_WITHOUT_GPU = 2
"""As few as all-reduce."""


def doctor(files: Sequence[str], overrides: Sequence[str], *, as_json: bool) -> int:
    """Examine this machine; returns the exit code: 0, 93 if something would stop a job, else 1.

    Args:
        files: Of the configuration; without any, nothing of a run is looked at.
        overrides: Over them.
        as_json: Print the report as data.

    Raises:
        ConfigError: For any mistake in the configuration.
    """
    config = load_config(files, overrides).config if files or overrides else None
    started, devices = time.time(), ranks_here(config)
    with tempfile.TemporaryDirectory(prefix="effnet-doctor-") as folder:
        place = RunDirectory(Path(folder))
        log_dir = place.log_dir(0)
        log_dir.mkdir(parents=True)
        if config is not None:
            write_atomically(place.config_file, dump_yaml(config))
        arguments = ("doctor", folder, f"--log-dir={log_dir}", *(["--quiet"] if as_json else []))
        status = run_command(
            trainer_command(*arguments, devices=devices),
            devices=devices,
            log_dir=log_dir,
            environment=agent_environment(os.environ, timeout_s=GRACE_S),
        )
        result = outcome(status, attempt=0, log_dir=log_dir, started=started)
        report = place.preflight_file.read_text(encoding="utf-8") if place.preflight_file.exists() else None
    if as_json and report is not None:
        sys.stdout.write(report)
    if report is None or result["exit_code"] not in (EXIT_DONE, EXIT_DO_NOT_RETRY):
        console.print(f"error: {described(result)}", style="red", highlight=False, markup=False)
    return int(result["exit_code"])


def ranks_here(config: Config | None) -> int:
    """Ranks to start: as training would, and no more than there are GPUs, or cores."""
    gpus = count_gpus() if config is None or config.trainer.accelerator != "cpu" else 0
    available = gpus or count_cores()
    if config is None:
        return gpus or min(available, RANKS_WITHOUT_GPU)
    return min(resolve_devices(config), available)
