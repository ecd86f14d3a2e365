"""Tracking: what logging costs a step of training, and what a W&B server that hangs costs a run.

All on this machine's CPU, in one run.

- `log_us_per_step`: time of the training thread for a row of metrics as a run writes it, to metrics.csv and to W&B with
  a server on loopback that answers, over the default `log_every_n_steps`. The row is that of a real run, all its
  columns; device to host copies are not in it.
- `share_of_b0_step`: the same over a step of B0 on one A100 at 128 images (2,489 images a second, published by NVIDIA
  for PyTorch with mixed precision).
- `hanging_server_vs_disabled`: time of a step of `effnet fit` (B0, small images) that writes a row each step, with W&B
  online and a server that hangs since the first steps, over that with W&B disabled. The two take turns, a few steps
  each. How long the beginning and the end of such a run may wait is said in docs/metrics.md.

    python -m benchmarks.tracking [--quick]
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.measure import finish, median_ratio, report
from benchmarks.photographs import write_shards
from benchmarks.runs import finished, settings
from benchmarks.turns import Loop, take_steps
from configs.run import RunDirectory
from configs.schema import Trainer
from tests.wandb_server import WandbServer

STEP_S = 128 / 2489
"""A training step of B0."""
TARGETS = {"share_of_b0_step": "under 0.001", "hanging_server_vs_disabled": "1"}
LOGGING = """
import json, os, statistics, sys, time
from pathlib import Path
from configs.load import load_config
from configs.run import RunDirectory
from trainer.tracking import build_loggers

folder, mode, rows = sys.argv[1], sys.argv[2], int(sys.argv[3])
row = json.loads(sys.argv[4])
overrides = ["data.train_shards=none", "data.val_shards=none", f"tracking.mode={mode}", f"runs_dir={folder}"]
config = load_config([], [*overrides, f"run_id={mode}"]).config
run = RunDirectory.of(config)
run.freeze(config)
loggers = build_loggers(config, run, resumed_step=0)
took = []
for step in range(1, rows + 1):
    begin = time.perf_counter()
    for logger in loggers:
        logger.log_metrics({name: value + step for name, value in row.items()}, step=step)
    took.append(time.perf_counter() - begin)
    time.sleep(0.02)  # rows come one by one, and W&B's service works between them
print(statistics.median(took), flush=True)
os._exit(0)
"""


def seconds_a_row(folder: Path, mode: str, row: str, *, rows: int) -> float:
    """Median time of the training thread, of rows of a run of its own."""
    with WandbServer() as server:
        command = [sys.executable, "-c", LOGGING, str(folder), mode, str(rows), row]
        variables = {**server.environment(), "WANDB_SILENT": "true"}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return float(done.stdout.split()[-1])


def compare_steps(*, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of each loop in each round."""
    arguments = ["effnet", "4", "64", "trainer.accelerator=cpu", "trainer.log_every_n_steps=1"]
    with WandbServer() as server:
        os.environ |= {**server.variables, "WANDB_SILENT": "true"}
        modes = {"server hangs": "online", "disabled": "disabled"}
        loops = {name: Loop("benchmarks.loops", [*arguments, f"tracking.mode={mode}"]) for name, mode in modes.items()}
        try:
            for loop in loops.values():
                loop.seconds(2)
            if not server.runs:
                raise RuntimeError("W&B was not online")
            server.fault = "hang"
            return take_steps(loops, rounds=rounds, steps=5)
        finally:
            for loop in loops.values():
                loop.close()


def _row(folder: Path) -> str:
    """A row of a real run, as JSON."""
    run = finished(RunDirectory(folder / "row"), settings(folder, trainer__max_steps=1))
    with run.metrics_file.open(newline="") as file:
        row = next(csv.DictReader(file))
    return json.dumps({name: float(value) for name, value in row.items() if value and name != "step"})


def main() -> None:
    """Measure all, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rounds in place of 5")
    rounds = 2 if parser.parse_args().quick else 5
    every = Trainer().log_every_n_steps
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards=2, samples=10, different=4)
        row = _row(folder)
        logged = {
            mode: [seconds_a_row(folder / f"{mode}{turn}", mode, row, rows=200) for turn in range(rounds)]
            for mode in ("online", "disabled")
        }
    found = compare_steps(rounds=4 * rounds)
    row_s = statistics.median(logged["online"])
    values = {
        "log_us_per_step": 1e6 * row_s / every,
        "share_of_b0_step": row_s / every / STEP_S,
        "hanging_server_vs_disabled": median_ratio(found["server hangs"], found["disabled"]),
    }
    table = [(key, f"{value:.4g}", TARGETS.get(key, "")) for key, value in values.items()]
    table += [("a row to metrics.csv and W&B, µs", f"{1e6 * row_s:.0f}", "")]
    table += [("a row to metrics.csv alone, µs", f"{1e6 * statistics.median(logged['disabled']):.0f}", "")]
    table += [(f"{name}: a step of training, ms", f"{1e3 * statistics.median(found[name]):.1f}", "") for name in found]
    report(f"Medians of {rounds} rounds on {os.cpu_count()} cores", ("figure", "value", "target"), table)
    finish(values)


if __name__ == "__main__":
    main()
