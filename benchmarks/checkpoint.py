"""Checkpoints: how long a save holds training up, how soon a run goes on from one, what being ready to stop costs.

All on this machine's CPU, in one run.

- `stall_share_b0`, `stall_share_b7`: what a save takes of training's time when there is one every 1,000 steps: the
  measured time from a save's beginning until training goes on (weights, RMSprop's two states and the average are
  copied, the writing goes on beside it), over 1,000 steps of B0 on one A100 at 128 images (2,489 images a second,
  published by NVIDIA for PyTorch with mixed precision). Steps of B7 take longer: for it, that is the severer measure.
  On a GPU the copy goes over PCIe into pinned memory in place of from memory to memory.
- `resume_vs_fresh_start`: time from the start of `effnet fit` to the first step's row of metrics, going on from a
  checkpoint, over that of a run that begins.
- `per_step_share`: what a step costs for the agreement of two ranks (gloo) on signals and for the watchdog, over the
  same B0 step, at the number of steps between agreements that this step makes for. Measured between steps of a small
  network, which leave processor and caches as training does: idle or warm ones say less.

    python -m benchmarks.checkpoint [--quick]
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import timm
import torch
import torch.multiprocessing
from torch import distributed

from benchmarks.measure import finish, median_ratio, report, say_when_ended, take_turns
from benchmarks.photographs import write_shards
from benchmarks.runs import command, finished, seconds_to_step, settings
from configs.rank_records import StepFile
from configs.run import RunDirectory
from trainer.agreement import Agreement, Votes
from trainer.pace import Pace, steps_between
from trainer.watchdog import Watchdog, WatchdogCallback

STEP_S = 128 / 2489
"""A training step of B0."""
STEPS_BETWEEN_SAVES = 1000
RANKS = 2
"""That agree."""
TARGETS = {
    "stall_share_b0": "under 0.005",
    "stall_share_b7": "under 0.005",
    "per_step_share": "under 0.002",
}


def stall_share(folder: Path, model: str, *, saves: int) -> float:
    """Of training's time, what saves take; the first, which makes its memory, is left out."""
    print(f"{model}: {saves + 1} saves", file=sys.stderr, flush=True)
    run = RunDirectory(folder / f"stall-{model}")
    every = {"checkpoint__every_n_steps": 4, "checkpoint__every_n_epochs": 100}
    changes = {"trainer__max_steps": 4 * (saves + 1), "checkpoint__keep_last": saves + 1}
    finished(run, settings(folder, model__name=model, **every, **changes))
    manifests = [json.loads(file.read_text()) for file in sorted(run.checkpoints.glob("step-*/manifest.json"))]
    if len(manifests) != saves + 1:  # a save that fails does not end training
        logs = "\n".join(log.read_text() for log in sorted(run.path.glob("logs/attempt-*/rank_*.log")))
        raise RuntimeError(f"{run.path}: {len(manifests)} checkpoints where {saves + 1} were to be:\n{logs}")
    shutil.rmtree(run.path)
    stalls = [manifest["stall_s"] for manifest in manifests[1:]]
    print(f"{model}: stalls of {', '.join(f'{1000 * stall:.0f}' for stall in stalls)} ms", file=sys.stderr, flush=True)
    return statistics.median(stalls) / (STEPS_BETWEEN_SAVES * STEP_S)


def compare_starts(folder: Path, *, rounds: int) -> tuple[dict[str, float], float]:
    """Medians in seconds, and the median ratio of a resumed start to a fresh one."""
    overrides = settings(folder, trainer__max_steps=2)
    saved = finished(RunDirectory(folder / "saved"), settings(folder, trainer__max_steps=1))

    def fresh() -> float:
        run = RunDirectory(folder / "fresh")
        return seconds_to_step(command(run, overrides), run, step=1)

    def resumed() -> float:
        shutil.copytree(saved.path, folder / "resumed")
        (folder / "resumed" / "outcome.json").unlink()  # or it would be done
        run = RunDirectory(folder / "resumed")
        return seconds_to_step(command(run, overrides), run, step=2)

    found = take_turns({"fresh start": fresh, "resumed": resumed}, rounds=rounds)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return medians, median_ratio(found["resumed"], found["fresh start"])


def seconds_a_step(folder: Path, *, steps: int) -> dict[str, float]:
    """Median costs on the slower of two ranks: of the watchdog, which each step has, and of an agreement."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # Its error is that of the rank that failed, with the traceback; the other one is ended.
    torch.multiprocessing.spawn(_steps_of_a_rank, (port, folder, steps), nprocs=RANKS)  # type: ignore[no-untyped-call]
    found = [json.loads(_costs_of(rank, folder).read_text()) for rank in range(RANKS)]
    return {name: max(costs[name] for costs in found) for name in found[0]}


def _costs_of(rank: int, folder: Path) -> Path:
    return folder / f"costs-{rank}.json"


def _steps_of_a_rank(rank: int, port: int, folder: Path, steps: int) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    distributed.init_process_group("gloo", rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    network, images = timm.create_model("tf_efficientnet_b0"), torch.randn(2, 3, 32, 32)
    agreement, pace = Agreement(world_size=RANKS, timeout=timedelta(seconds=60)), Pace(None)
    watchdog = WatchdogCallback(Watchdog(folder, rank, timeout_s=3600), StepFile(folder, rank))
    trainer = SimpleNamespace(global_step=0)
    watchdog.on_fit_start(cast(Any, trainer), cast(Any, None))
    watching, agreeing = [], []
    for step in range(steps):
        network(images).sum().backward()
        distributed.barrier()  # the gradients' reduction keeps the ranks in step
        trainer.global_step = step
        begin = time.perf_counter()
        watchdog.on_train_batch_end(cast(Any, trainer), cast(Any, None))
        pace.asks(step)
        watched = time.perf_counter()
        agreement.ask(Votes(), step_s=pace.step_s(step))
        pace.agreed(step, slowest_step_s=agreement.slowest_step_s)
        agreeing.append(time.perf_counter() - watched)
        watching.append(watched - begin)
    costs = {"watchdog": statistics.median(watching), "agreement": statistics.median(agreeing)}
    _costs_of(rank, folder).write_text(json.dumps(costs))
    distributed.barrier()


def main() -> None:
    """Measure all, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds in place of 7")
    rounds = 3 if parser.parse_args().quick else 7
    say_when_ended()
    measure: dict[str, Callable[[], float]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards=2, samples=10, different=4)
        measure["stall_share_b0"] = lambda: stall_share(folder, "tf_efficientnet_b0", saves=rounds)
        measure["stall_share_b7"] = lambda: stall_share(folder, "tf_efficientnet_b7", saves=rounds)
        values = {key: measured() for key, measured in measure.items()}
        medians, values["resume_vs_fresh_start"] = compare_starts(folder, rounds=rounds)
        costs = seconds_a_step(folder, steps=50 * rounds)
        step_s = costs["watchdog"] + costs["agreement"] / steps_between(STEP_S)
        values["per_step_share"] = step_s / STEP_S
    rows = [(name, f"{value:.4g}", TARGETS.get(name, "")) for name, value in values.items()]
    rows += [(f"{name}, s to the first step", f"{seconds:.2f}", "") for name, seconds in medians.items()]
    rows += [(f"{name}, µs each", f"{1e6 * seconds:.0f}", "") for name, seconds in costs.items()]
    rows += [(f"both, µs a step, an agreement every {steps_between(STEP_S)}", f"{1e6 * step_s:.0f}", "")]
    report(f"Medians of {rounds} rounds on {os.cpu_count()} cores", ("figure", "value", "target"), rows)
    finish(values)


if __name__ == "__main__":
    main()
