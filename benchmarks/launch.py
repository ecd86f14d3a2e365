"""Launching: how soon the first step is done, and how soon the command line answers.

All on this machine's CPU, in one run.

- `local_vs_torchrun`: time from the start of `effnet launch local` on two processes to the first row of metrics, over
  that of `torchrun` with a bare Lightning script (benchmarks/bare_lightning.py) to its first step: the same network,
  optimizer and shards. Ours takes a snapshot of the code, checks the configuration, reads the index, makes the run
  directory and opens its logs in that time.
- `help_s`: seconds that `effnet --help` takes.

    python -m benchmarks.launch [--quick]
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bare_lightning import FIRST_STEP
from benchmarks.measure import finish, median_ratio, report, say_when_ended, take_turns
from benchmarks.photographs import write_shards
from benchmarks.runs import command, running, seconds_to_step, settings
from configs.run import RunDirectory

TARGETS = {"local_vs_torchrun": "at most 1.1", "help_s": "under 0.5"}


def launched(folder: Path) -> float:
    """Seconds to the first step of a launched run."""
    run = RunDirectory(folder / "launched")
    overrides = settings(folder, trainer__devices=2, trainer__max_steps=1, data__eval_batch_size=64)
    return seconds_to_step(command(run, overrides, "launch", "local"), run, step=1)


def bare(folder: Path) -> float:
    """Seconds to the first step of the bare script."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [*torchrun, "-m", "benchmarks.bare_lightning", str(folder)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    begin = time.perf_counter()
    with running(script, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        found = next((time.perf_counter() - begin for line in process.stdout if FIRST_STEP in line), None)
        process.communicate()
    if found is None:
        raise RuntimeError("the bare script ended well, but said nothing of a first step")
    return found


def help_seconds() -> float:
    """Seconds that `effnet --help` takes."""
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "launch.cli", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin


def main() -> None:
    """Measure all, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds in place of 7")
    rounds = 3 if parser.parse_args().quick else 7
    say_when_ended()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards=2, samples=10, different=4)
        found = take_turns(
            {
                "effnet launch local": lambda: launched(folder),
                "torchrun, bare Lightning": lambda: bare(folder),
                "effnet --help": help_seconds,
            },
            rounds=rounds,
        )
    values = {
        "local_vs_torchrun": median_ratio(found["effnet launch local"], found["torchrun, bare Lightning"]),
        "help_s": statistics.median(found["effnet --help"]),
    }
    rows = [(name, f"{value:.4g}", TARGETS[name]) for name, value in values.items()]
    rows += [(f"{name}, s", f"{statistics.median(seconds):.2f}", "") for name, seconds in found.items()]
    report(f"Medians of {rounds} rounds on {os.cpu_count()} cores", ("figure", "value", "target"), rows)
    finish(values)


if __name__ == "__main__":
    main()
