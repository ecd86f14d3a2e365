"""What share of training's time goes into waiting for batches, as rows of metrics have it."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from pytorch_lightning import Callback, Trainer

from configs.run import RunDirectory
from datamodules.streaming import loaders
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import ALONE, new_run, rows, train
from trainer import metrics
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.metrics import TrainingMetrics
from trainer.tracking import MetricsCsv

Overrides = Callable[..., list[str]]


def shares(run: RunDirectory) -> list[float]:
    return [float(row["throughput/data_wait_share"]) for row in rows(run) if row["train/loss"]]


class Clock(Callback):
    """Time in which a batch is waited for 3 s, a micro-batch takes 1 s, and a batch of a validation 100 s."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def on_train_batch_start(self, *_: object) -> None:
        self.now += 1

    def on_validation_batch_start(self, *_: object) -> None:
        self.now += 100

    def waits(self) -> None:
        self.now += 3


def test_the_share_is_of_the_time_of_training(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, raised = Clock(), loaders._raised

    def slow(items: object) -> object:
        for item in raised(items):
            clock.waits()
            yield item

    monkeypatch.setattr(loaders, "_raised", slow)
    monkeypatch.setattr(loaders, "time", clock)
    monkeypatch.setattr(metrics, "time", clock)
    run = new_run(toy_overrides(trainer__max_epochs=2, trainer__log_every_n_steps=3), tmp_path)
    config = run.load_config()
    callbacks = [clock, TrainingMetrics(config, attempt=0)]
    trainer = build_trainer(config, ALONE, "cpu", callbacks=callbacks, loggers=[MetricsCsv(run, resumed_step=0)])
    trainer.fit(build_module(config), build_datamodule(config, "cpu"))

    # Batches of a validation are waited for too: 100 s and 3 s each, none of it time of training.
    assert shares(run) == pytest.approx([0.75] * 5)


@pytest.mark.parametrize(("bound", "told"), [("0.5", 1), ("0.9", 0), ("null", 0)])
def test_input_that_stalls_is_said_once(
    bound: str,
    told: int,
    toy_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    run = new_run(toy_overrides(tracking__alert_data_wait_share=bound), tmp_path)
    alerts: list[str] = []
    monkeypatch.setattr(metrics, "alert", lambda _, title, text: alerts.append(title))
    measure = metrics.TrainingMetrics(run.load_config(), attempt=0)
    trainer = Trainer(accelerator="cpu", devices=1, logger=False)
    for share in (0.8, 0.8, 0.1, 0.8, 0.8, 0.8, 0.8):
        measure._watch_input(trainer, share)

    assert alerts == ["input has stalled"] * told
    assert caplog.text.count("training has waited for data for 80% of its time") == told


def slowed(monkeypatch: pytest.MonkeyPatch, *, loading_s: float, training_s: float) -> None:
    """Let each micro-batch take at least so long to load, in the loader's process, and to train."""
    decode, measure = loaders.Collate.__call__, metrics.TrainingMetrics.on_train_batch_end

    def load(*arguments: object) -> object:
        time.sleep(loading_s)
        return decode(*arguments)

    def end(*arguments: object) -> None:
        time.sleep(training_s)
        measure(*arguments)

    monkeypatch.setattr(loaders.Collate, "__call__", load)
    monkeypatch.setattr(metrics.TrainingMetrics, "on_train_batch_end", end)


def test_a_loader_that_is_too_slow_is_seen(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, loading_s=1.0, training_s=0.0)
    run = train(new_run(toy_overrides(data__num_workers=1, trainer__max_steps=4), tmp_path))

    assert statistics.median(shares(run)) > 0.5


def test_a_loader_that_keeps_up_is_not_waited_for(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slowed(monkeypatch, loading_s=0.0, training_s=0.5)
    run = train(new_run(toy_overrides(data__num_workers=1, trainer__max_steps=6), tmp_path))

    assert statistics.median(shares(run)) < 0.05


TWO_RANKS = """
import os, sys, time
import trainer.fit
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from datamodules.streaming import loaders
from trainer.processes import Processes
from trainer.signals import StopFlag

if os.environ["RANK"] == "1":
    collate = loaders.Collate.__call__
    loaders.Collate.__call__ = lambda *given: time.sleep(1.0) or collate(*given)
run, console = RunDirectory(Path({path!r})), Console(file=sys.stderr)
trainer.fit.fit(run, attempt=0, flag=StopFlag(), processes=Processes.from_environment(), console=console)
print("null")
"""


def test_it_is_the_share_of_the_rank_that_waits_longest(toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"trainer__devices": 2, "trainer__max_steps": 3, "trainer__strategy": "ddp"}
    run = new_run(toy_overrides(**changes), tmp_path)
    run_ranks(TWO_RANKS.format(path=str(run.path)), world_size=2)

    assert statistics.median(shares(run)) > 0.5
