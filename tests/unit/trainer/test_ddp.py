"""Real ranks over gloo: when their gradients travel, and in what format."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.run import RunDirectory
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import new_run, rows

Overrides = Callable[..., list[str]]
RANK = """
import json, sys
import trainer.fit
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from trainer.processes import Processes
from trainer.signals import StopFlag

run, console = RunDirectory(Path({path!r})), Console(file=sys.stderr)
trainer.fit.fit(run, attempt=0, flag=StopFlag(), processes=Processes.from_environment(), console=console)
print("null")
"""
TWO = {"trainer__devices": 2, "trainer__strategy": "ddp"}


def trained(overrides: list[str], runs_dir: Path) -> RunDirectory:
    run = new_run(overrides, runs_dir)
    run_ranks(RANK.format(path=str(run.path)), world_size=2)
    return run


def events(run: RunDirectory) -> list[dict[str, Any]]:
    """Of the trace of a run, those with a duration."""
    (file,) = run.path.glob("traces/*")
    with gzip.open(file) as text:
        found: list[dict[str, Any]] = [event for event in json.load(text)["traceEvents"] if event.get("ph") == "X"]
    return found


def test_gradients_are_summed_while_the_backward_pass_makes_others(toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = TWO | {"data__micro_batch_size": 8, "trainer__max_steps": 4, "trainer__profile_steps": "[3,3]"}
    # A B0 that is as wide as it is: its gradients, of 21 MB, are less than one of torch's buckets.
    run = trained(toy_overrides(**changes, model__compound_phi=0), tmp_path)

    found = events(run)
    backward = [event for event in found if event["name"].startswith("autograd::engine::evaluate_function")]
    begin, end = min(event["ts"] for event in backward), max(event["ts"] + event["dur"] for event in backward)
    handed_over, sums = (
        [event for event in found if event["name"] == name and event["ts"] < end]
        for name in ("c10d::allreduce_", "gloo:all_reduce")
    )
    # All but the last bucket or two while the backward pass still works; when gloo gets a core is another matter.
    assert len([event for event in handed_over if event["ts"] > begin]) >= 6
    # BatchNorm's statistics before it.
    assert any(event["ts"] < begin for event in handed_over)
    assert sums


@pytest.mark.parametrize(("hook", "close"), [("bf16", 0.05), ("fp16", 0.01)])
def test_rounded_gradients_train_nearly_alike(
    hook: str, close: float, toy_overrides: Overrides, tmp_path: Path
) -> None:
    settings = TWO | {"trainer__max_steps": 3, "loss__mixup_alpha": 0.0, "loss__cutmix_alpha": 0.0}
    runs = [
        trained(toy_overrides(**settings, trainer__ddp_comm_hook=each), tmp_path / str(each)) for each in (None, hook)
    ]
    plain, rounded = ([float(row["train/loss"]) for row in rows(run) if row["train/loss"]] for run in runs)

    assert rounded[0] == plain[0]  # before the first update
    assert rounded[1:] == pytest.approx(plain[1:], rel=close)
    assert rounded != plain
