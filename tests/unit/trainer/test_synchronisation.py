"""No step of training that writes no row makes the host wait for the device."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

import trainer.fit
import trainer.undoing
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import new_run, train
from tests.unit.trainer.synchronisation import CountsReads
from trainer.queued_copies import QueuedCopies

Overrides = Callable[..., list[str]]
EVERYTHING = {
    "data__num_workers": 1,  # or decoding would be counted
    "data__augmentation__random_erasing_prob": 0.5,
    "trainer__gradient_clip_val": 1.0,
    "trainer__log_every_n_steps": 4,
    "trainer__max_steps": 8,
}
QUIET = (1, 2, 3, 5, 6, 7)
"""Steps that write no row and are not the last, which is followed by validation and a save."""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callback], None]:
    """Adds a callback to those of `trainer.fit.fit`, behind them all."""

    def add(callback: Callback) -> None:
        build = trainer.fit.build_trainer

        def build_with(*arguments: object, callbacks: list[Callback], **named: object) -> Trainer:
            return build(*arguments, callbacks=[*callbacks, callback], **named)  # type: ignore[arg-type]

        monkeypatch.setattr(trainer.fit, "build_trainer", build_with)

    return add


@pytest.fixture
def reads(
    watched: Callable[[Callback], None], toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., dict[int, Counter[str]]]:
    """Trains 8 steps as on a device that runs behind, and returns what was read in each."""

    def reads(*, behind: bool = True, **changes: object) -> dict[int, Counter[str]]:
        monkeypatch.setattr(trainer.undoing, "runs_behind", lambda _: behind)
        counts = CountsReads()
        watched(counts)
        train(new_run(toy_overrides(**EVERYTHING | changes), tmp_path))
        return counts.found

    return reads


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"loss__mixup_mode": "elem"},
        {"loss__mixup_mode": "pair"},
        {"optimizer__opt": "rmsproptf"},
        {"trainer__gradient_clip_algorithm": "value"},
        {"fault__max_skipped_steps": 0},
    ],
)
def test_a_step_that_logs_nothing_reads_nothing(
    changes: dict[str, object], reads: Callable[..., dict[int, Counter[str]]]
) -> None:
    found = reads(**changes)
    assert found[4]["tolist"] == 1  # the row
    assert {step: found[step] for step in QUIET} == {step: Counter() for step in QUIET}


def test_the_cpu_which_runs_with_the_host_reads_whether_to_skip_and_nothing_else(
    reads: Callable[..., dict[int, Counter[str]]],
) -> None:
    found = reads(behind=False)
    assert {step: found[step] for step in QUIET} == {step: Counter(__bool__=1, _local_scalar_dense=1) for step in QUIET}


class Asks(Callback):
    """Reads a value after each step, in one of the ways that there are."""

    def __init__(self, ask: Callable[[torch.Tensor], object]) -> None:
        self._ask = ask

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        assert isinstance(pl_module.losses, torch.Tensor)
        self._ask(pl_module.losses)


@pytest.mark.parametrize(
    ("ask", "noted"),
    [
        (lambda losses: losses[0].item(), "item"),
        (lambda losses: losses.tolist(), "tolist"),
        (lambda losses: losses.cpu(), "cpu"),
        (lambda losses: losses.numpy(), "numpy"),
        (lambda losses: float(losses[0]), "__float__"),
        (lambda losses: losses.to("cpu"), "to(cpu)"),
        (lambda losses: bool(losses.to("cpu", non_blocking=True)[0]), "__bool__"),
        (lambda losses: losses[losses > 0], "__getitem__ by a mask"),
        (lambda losses: losses.masked_select(losses > 0), "masked_select"),
        (lambda losses: torch.full_like(losses, losses[0]), "_local_scalar_dense"),
        (lambda losses: torch.tensor([1.0], device=losses.device), "tensor"),
    ],
)
def test_what_reads_is_found(
    ask: Callable[[torch.Tensor], object],
    noted: str,
    watched: Callable[[Callback], None],
    reads: Callable[..., dict[int, Counter[str]]],
) -> None:
    watched(Asks(ask))
    found = reads(trainer__max_steps=3)
    assert found[2][noted]


TWO_RANKS = """
import json, sys
import trainer.fit, trainer.undoing
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from tests.unit.trainer.synchronisation import CountsReads
from trainer.processes import Processes
from trainer.signals import StopFlag

counts, build = CountsReads(), trainer.fit.build_trainer
trainer.fit.build_trainer = lambda *given, callbacks, **named: build(*given, callbacks=[*callbacks, counts], **named)
trainer.undoing.runs_behind = lambda _: True
run, console = RunDirectory(Path({path!r})), Console(file=sys.stderr)
trainer.fit.fit(run, attempt=0, flag=StopFlag(), processes=Processes.from_environment(), console=console)
print(json.dumps([dict(counts.found[step]) for step in (2, 3)]))
"""


def test_two_ranks_read_nothing_either(toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"trainer__devices": 2, "data__micro_batch_size": 4, "trainer__max_steps": 4, "trainer__strategy": "ddp"}
    run = new_run(toy_overrides(**EVERYTHING | changes), tmp_path)
    assert run_ranks(TWO_RANKS.format(path=str(run.path)), world_size=2) == [[{}, {}]] * 2


def test_numpys_numbers_are_queued_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """What timm draws for each sample; torch itself pins no array."""
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda values: pinned.append(values) or values)
    monkeypatch.setattr(torch.Tensor, "to", lambda values, *_, **__: values)
    with QueuedCopies():
        made = torch.tensor(np.ones(3), device="cuda", dtype=torch.float32)
    assert made.tolist() == [1, 1, 1]
    assert pinned == [made]


class Forbids(Callback):
    """Has CUDA raise where the host waits for the device, in steps that log nothing. Must be the last callback."""

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        quiet = trainer.global_step + 1 in QUIET
        torch.cuda.set_sync_debug_mode("error" if quiet else "default")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("mode", ["batch", "elem"])
def test_on_a_gpu_torch_finds_no_step_that_waits(
    precision: str, mode: str, watched: Callable[[Callback], None], toy_overrides: Overrides, tmp_path: Path
) -> None:
    watched(Forbids())
    changes = {"trainer__accelerator": "cuda", "trainer__precision": precision, "loss__mixup_mode": mode}
    try:
        train(new_run(toy_overrides(**EVERYTHING | changes), tmp_path))
    finally:
        torch.cuda.set_sync_debug_mode("default")
