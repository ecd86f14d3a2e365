"""``effnet predict``: hands what a user names to ranks on this machine's devices."""

import json
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from configs.problems import ConfigError, Problem
from configs.run import RunDirectory
from launch.devices import count_gpus
from launch.fit import in_processes, missing_extra

STDIN = "-"
SUFFIXES = (".csv", ".jsonl", ".parquet")


def predict(
    run: str,
    paths: Sequence[str],
    *,
    stdin: Iterable[str],
    devices: int | None,
    out: Path | None,
    options: Sequence[str],
) -> int:
    """Predict here; returns the exit code.

    Args:
        run: Its directory, id, or the beginning of one.
        paths: Images, folders, globs, shards; ``-`` for a list of files and shards, a line each.
        stdin: Where that list comes from.
        devices: Processes; None is a process for each GPU, or one.
        out: File for the answers.
        options: For the trainer.

    Raises:
        ConfigError: If there is no such run, or the file has no suffix that is known.
    """
    directory = RunDirectory.find(run)
    config = directory.load_config()
    gpus = count_gpus() if config.trainer.accelerator != "cpu" else 0
    problems = [*missing_extra(config)]
    if out is not None and out.suffix not in SUFFIXES:
        problems.append(Problem(key="--out", received=str(out), accepted=f"a file that ends in {', '.join(SUFFIXES)}"))
    if devices is not None and gpus and devices > gpus:
        problems.append(Problem(key="--devices", received=str(devices), accepted=f"at most {gpus}, the GPUs here"))
    if problems:
        raise ConfigError(problems)
    devices = devices or gpus or 1
    listed = [line.rstrip("\r\n") for line in stdin if line.strip()] if STDIN in paths else []
    log_dir = directory.path / "logs" / "predict"
    with tempfile.TemporaryDirectory(prefix="effnet-predict-") as folder:
        inputs = Path(folder) / "inputs.json"
        inputs.write_text(json.dumps({"paths": [each for each in paths if each != STDIN], "listed": listed}))
        given = [f"--inputs={inputs}", *options, *([f"--out={out}"] if out is not None else [])]
        return in_processes("predict", directory, given, log_dir=log_dir, devices=devices)
