"""Tracking: what logging costs a step of training, and what a W&B server that hangs costs a run.

All on this machine's CPU, in one run.

- `log_us_per_step`: time of the training thread for a row of metrics as a run writes it, to metrics.csv and to W&B with
  a server on loopback that answers, over the default `log_every_n_steps`. The row is that of a real run, all its
  columns; device to host copies are not in it.
- `share_of_b0_step`: the same over a step of B0 on one A100 at 128 images (2,489 images a second, published by NVIDIA
  for PyTorch with mixed precision).
- `hanging_server_vs_disabled`: time of training's steps, a row at each, from the first row to the last, with W&B online
  and a server that hangs from the third row on, over that with W&B disabled. How long the beginning and the end of such
  a run may wait is `trainer/wandb_logger.py`'s; the table has what they took.

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
import threading
import time
from pathlib import Path

from benchmarks.measure import finish, median_ratio, report, take_turns
from benchmarks.photographs import write_shards
from benchmarks.runs import finished, settings
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


def seconds_a_step(folder: Path, mode: str, name: str, *, steps: int) -> tuple[float, float]:
    """Median time of a step of a real run as its metrics have it, and of the whole run."""
    run = RunDirectory(folder / name)
    changes = {"trainer__max_steps": steps, "checkpoint__every_n_epochs": 100, "tracking__mode": mode}
    with WandbServer() as server:
        os.environ |= {**server.variables, "WANDB_SILENT": "true"}
        threading.Thread(target=_hang_after, args=(server, run, 3), daemon=True).start()
        begin = time.perf_counter()
        finished(run, settings(folder, **changes))
        whole = time.perf_counter() - begin
    rows = _training_rows(run)[3:]
    return statistics.median(float(row["throughput/step_time_p50_ms"]) / 1000 for row in rows), whole


def _hang_after(server: WandbServer, run: RunDirectory, step: int) -> None:
    """Let a server hang as soon as metrics.csv has a step."""
    while not (run.metrics_file.exists() and len(_training_rows(run)) >= step):
        time.sleep(0.02)
    server.fault = "hang"


def _training_rows(run: RunDirectory) -> list[dict[str, str]]:
    with run.metrics_file.open(newline="") as file:
        return [row for row in csv.DictReader(file) if row.get("train/loss")]


def _row(folder: Path) -> str:
    """A row of a real run, as JSON."""
    run = finished(RunDirectory(folder / "row"), settings(folder, trainer__max_steps=1))
    return json.dumps(
        {name: float(value) for name, value in _training_rows(run)[0].items() if value and name != "step"}
    )


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
        wholes: dict[str, list[float]] = {"online": [], "disabled": []}

        def steps(mode: str) -> float:
            turn = f"{mode}-steps-{len(wholes[mode])}"
            step_s, whole = seconds_a_step(folder, mode, turn, steps=40)
            wholes[mode].append(whole)
            return step_s

        found = take_turns({mode: lambda mode=mode: steps(mode) for mode in wholes}, rounds=rounds)  # type: ignore[misc]
    row_s = statistics.median(logged["online"])
    values = {
        "log_us_per_step": 1e6 * row_s / every,
        "share_of_b0_step": row_s / every / STEP_S,
        "hanging_server_vs_disabled": median_ratio(found["online"], found["disabled"]),
    }
    table = [(key, f"{value:.4g}", TARGETS.get(key, "")) for key, value in values.items()]
    table += [("a row to metrics.csv and W&B, µs", f"{1e6 * row_s:.0f}", "")]
    table += [("a row to metrics.csv alone, µs", f"{1e6 * statistics.median(logged['disabled']):.0f}", "")]
    for mode, told in (("online", "server hangs"), ("disabled", "W&B disabled")):
        table += [(f"{told}: a step of a run, ms", f"{1e3 * statistics.median(found[mode]):.1f}", "")]
        table += [(f"{told}: the whole run, s", f"{statistics.median(wholes[mode]):.1f}", "")]
    report(f"Medians of {rounds} rounds on {os.cpu_count()} cores", ("figure", "value", "target"), table)
    finish(values)


if __name__ == "__main__":
    main()
