"""Two ranks whose BatchNorm asks both train as one rank that has the batch to itself."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.load import load_config
from configs.problems import ConfigError
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import ALONE, average, checkpoint, new_run, rows, train, weights
from tests.unit.trainer.settings import settings
from tests.unit.trainer.test_ddp import RANK
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics
from trainer.processes import Processes
from trainer.sync_batchnorm import CpuSyncBatchNorm, synchronise, synchronise_as_configured

Overrides = Callable[..., list[str]]
STEPS = 5
STILL = {
    "model__drop_rate": 0.0,
    "model__drop_path_rate": 0.0,
    "loss__mixup_alpha": 0.0,  # draws by micro-batch
    "loss__cutmix_alpha": 0.0,
    "data__global_batch_size": 32,
    "data__image_size": 128,  # BatchNorm over more pixels, and small steps: rounding is not amplified
    "optimizer__lr": 0.005,
    "trainer__channels_last": "false",  # torch's own BatchNorm rounds more in that
    "trainer__max_steps": STEPS,
}
TWO = {"trainer__devices": 2, "trainer__sync_batchnorm": "true", "data__micro_batch_size": 16}
IN_FP64 = """
import copy, json, torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tests.unit.trainer.settings import settings
from trainer.assembly import build_module
from trainer.sync_batchnorm import synchronise

torch.set_num_threads(1)
distributed.init_process_group("gloo")
still = dict(model__drop_rate=0, model__drop_path_rate=0, model__compound_phi=-12, trainer__accelerator="cpu")
alone = build_module(settings(**still, data__num_classes=4)).network.double().train()
together = copy.deepcopy(alone)
synchronise(together, "cpu")
together = DistributedDataParallel(together, broadcast_buffers=False)
images = torch.randn(8, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1))
targets, rank = torch.arange(8) % 4, distributed.get_rank()
for network, part in ((alone, slice(8)), (together, slice(4 * rank, 4 * rank + 4))):
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images[part]), targets[part]).backward()
        optimizer.step()
ours, theirs = together.module.state_dict(), alone.state_dict()
assert ours.keys() == theirs.keys()
print(json.dumps(max(float((ours[name] - theirs[name]).abs().max()) for name in theirs)))
"""


def test_in_fp64_three_steps_agree_to_rounding() -> None:
    assert max(run_ranks(IN_FP64, world_size=2)) < 1e-12  # type: ignore[type-var]


@pytest.mark.parametrize("checkpointing", ["false", pytest.param("true", marks=pytest.mark.slow)])
def test_two_ranks_with_half_the_batch_each_end_with_the_weights_of_one(
    checkpointing: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    one = train(new_run(toy_overrides(**STILL, data__micro_batch_size=32), tmp_path / "one"))
    overrides = toy_overrides(**STILL, **TWO, trainer__gradient_checkpointing=checkpointing)
    two = new_run(overrides, tmp_path / "two")
    run_ranks(RANK.format(path=str(two.path)), world_size=2)

    for kind in (weights, average):
        ours, theirs = kind(two, STEPS), kind(one, STEPS)
        assert ours.keys() == theirs.keys()
        for name, tensor in theirs.items():  # among them BatchNorm's counters and running statistics
            torch.testing.assert_close(ours[name], tensor, rtol=1e-4, atol=5e-5, msg=name)
    for name in ("train/loss", "val/loss", "val/ema_loss"):
        found, expected = ([float(row[name]) for row in rows(run) if row.get(name)] for run in (two, one))
        assert len(expected) == (STEPS if name == "train/loss" else 1)
        assert found == pytest.approx(expected, abs=5e-5)
    assert checkpoint(two, STEPS)["global_step"] == STEPS


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_converted_layers_keep_names_weights_activations_and_what_they_compute_alone(accelerator: str) -> None:
    """A converted network is evaluated without any process group, on either device's layers."""
    config = settings(model__compound_phi=-12, model__bn_momentum=0.02, model__bn_eps=1e-4, trainer__accelerator="cpu")
    plain, converted = (build_module(config).network.eval() for _ in range(2))
    for network in (plain, converted):
        for number, buffer in enumerate(network.buffers()):
            if buffer.is_floating_point():
                buffer.add_(number / 100)
    synchronise(converted, accelerator)

    kinds = {type(layer) for layer in converted.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)}
    assert all(issubclass(kind, CpuSyncBatchNorm if accelerator == "cpu" else nn.SyncBatchNorm) for kind in kinds)
    assert [name for name, _ in converted.named_parameters()] == [name for name, _ in plain.named_parameters()]
    assert converted.state_dict().keys() == plain.state_dict().keys()
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(converted(images), plain(images), rtol=0, atol=0)


def test_torchs_layers_bear_what_is_done_to_running_statistics(toy_overrides: Overrides) -> None:
    """On one process, where they are plain BatchNorm, and where blocks are computed again without counting."""
    changes = {"trainer__max_steps": 3, "trainer__gradient_checkpointing": "true"}
    config = load_config([], toy_overrides(**changes)).config
    plain, converted = (build_module(config) for _ in range(2))
    synchronise(converted.network, "cuda")
    for module in (plain, converted):
        trainer = build_trainer(config, ALONE, "cpu", callbacks=[BatchNormStatistics()], loggers=[])
        trainer.fit(module, build_datamodule(config, "cpu"))

    for name, tensor in plain.network.state_dict().items():
        assert torch.equal(converted.network.state_dict()[name], tensor), name


def test_one_process_alone_is_told_once_that_it_has_no_others_to_ask(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes = {"trainer__devices": "auto", "trainer__max_steps": 2, "checkpoint__every_n_steps": 1}
    train(new_run(toy_overrides(**changes, trainer__sync_batchnorm="true"), tmp_path / "wanted"))
    told = [(record.levelname, record.getMessage()) for record in caplog.records if "sync_b" in record.getMessage()]
    assert told == [
        ("WARNING", "trainer.sync_batchnorm has no effect: this run has one process, which has no others to ask")
    ]
    caplog.clear()
    train(new_run(toy_overrides(**changes), tmp_path / "plain"))
    assert "sync_batchnorm" not in caplog.text


@pytest.mark.parametrize("rank", [0, 1])
def test_several_processes_are_told_nothing(
    rank: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    config = settings(model__compound_phi=-12, trainer__accelerator="cpu", trainer__sync_batchnorm="true")
    network = build_module(config).network
    synchronise_as_configured(network, config, Processes.from_environment(), "cpu")
    assert any(isinstance(layer, CpuSyncBatchNorm) for layer in network.modules())
    assert caplog.text == ""


def test_a_network_without_batchnorm_is_refused() -> None:
    network = build_module(settings(model__name="test_efficientnet_gn", trainer__accelerator="cpu")).network

    with pytest.raises(ConfigError, match="false: the network has no BatchNorm"):
        synchronise(network, "cpu")


def test_a_sweep_of_the_learning_rate_asks_all_ranks_too(toy_overrides: Overrides) -> None:
    changes = {**STILL, "data__image_size": 64, "trainer__max_steps": "null"}
    program = """
import json, sys
from configs.load import load_config
from trainer.processes import Processes
from trainer.tuning.attempt import first_phase, try_training
from trainer.tuning.sweep import LearningRateSweep

config = load_config([], {overrides!r}).config
sweep = LearningRateSweep(min_lr=1e-5, max_lr=1e-4, steps=2, on_step=lambda _: None)
try_training(first_phase(config, steps=2), Processes.from_environment(), [sweep])
print(json.dumps(sweep.losses))
"""
    ours = run_ranks(program.format(overrides=toy_overrides(**changes, **TWO)), world_size=2)
    (theirs,) = run_ranks(program.format(overrides=toy_overrides(**changes, data__micro_batch_size=32)), world_size=1)

    assert ours == [pytest.approx(theirs, abs=5e-5)] * 2
