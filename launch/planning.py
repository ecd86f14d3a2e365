"""``effnet plan``: checks the configuration, and has the trainer's side, which knows torch, work out the rest."""

import os
import subprocess
import sys
from collections.abc import Sequence

from configs.load import load_config
from configs.problems import ConfigError, Problem, shown
from launch.devices import count_gpus, resolve_devices

NO_DEVICES = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
"""All tensors are fake: a plan takes no GPU from those who use it, and says the same everywhere."""


def plan(files: Sequence[str], overrides: Sequence[str], *, samples: int | None, as_json: bool) -> int:
    """Print what a run will need; returns the exit code. Nothing is written.

    Args:
        files: Of the configuration, a hardware file among them.
        overrides: Over them.
        samples: Training samples of an epoch, where no index says.
        as_json: As one object.

    Raises:
        ConfigError: For any mistake in the configuration.
    """
    config = load_config(files, overrides).config
    trainer = config.trainer
    elsewhere = trainer.num_nodes > 1 or (trainer.accelerator != "cpu" and count_gpus() == 0)
    if not isinstance(trainer.devices, int) and trainer.strategy != "single" and elsewhere:
        accepted = "a number: what the nodes have cannot be seen from here"
        raise ConfigError([Problem(key="trainer.devices", received=shown(trainer.devices), accepted=accepted)])
    command = [sys.executable, "-m", "trainer.plan", f"--devices={resolve_devices(config)}"]
    command += [*([f"--samples={samples}"] if samples is not None else []), *(["--json"] if as_json else [])]
    # Not through a file: a plan leaves nothing behind.
    done = subprocess.run(
        command, input=config.model_dump_json(), text=True, env={**os.environ, **NO_DEVICES}, check=False
    )
    return done.returncode if done.returncode >= 0 else 1
