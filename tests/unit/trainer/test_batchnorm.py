import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from configs.load import load_config
from tests.unit.trainer.runs import ALONE
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics

Overrides = Callable[..., list[str]]
PLAIN = {"model__drop_rate": 0.0, "model__drop_path_rate": 0.0, "trainer__max_steps": 4}


def run(overrides: list[str], *callbacks: Callback) -> nn.Module:
    config = load_config([], overrides).config
    trainer = build_trainer(config, ALONE, "cpu", callbacks=list(callbacks), loggers=[])
    module = build_module(config)
    trainer.fit(module, build_datamodule(config, "cpu"))
    return module.network


def layers(network: nn.Module) -> dict[str, _BatchNorm]:
    return {name: module for name, module in network.named_modules() if isinstance(module, _BatchNorm)}


def statistics(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers() if "running_" in name}


@pytest.mark.parametrize("momentum", [None, 0.01])
def test_with_one_micro_batch_a_step_it_is_plain_pytorch(momentum: float | None, toy_overrides: Overrides) -> None:
    overrides = toy_overrides(**PLAIN, data__micro_batch_size=16, model__bn_momentum=momentum)
    with_it, plain = run(overrides, BatchNormStatistics()), run(overrides)

    for name, expected in plain.state_dict().items():
        torch.testing.assert_close(with_it.state_dict()[name], expected, rtol=1e-5, atol=1e-6, msg=name)


class MicroBatches(Callback):
    """Keeps the network as it was before each micro-batch, what it was given, and the statistics after each step."""

    def __init__(self) -> None:
        self.seen: list[tuple[nn.Module, torch.Tensor]] = []
        self.after_step: list[dict[str, torch.Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network

        def keep(_: object, arguments: tuple[torch.Tensor]) -> None:
            if network.training:
                before = copy.deepcopy(network)
                before._forward_pre_hooks.clear()
                self.seen.append((before, arguments[0].clone()))

        network.register_forward_pre_hook(keep)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.seen) == 2 * trainer.global_step:
            self.after_step.append(statistics(pl_module.network))  # type: ignore[arg-type]


def batch_statistics(network: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean and variance of every BatchNorm's input, as PyTorch takes them."""
    for layer in layers(network).values():
        layer.momentum = 1.0
    network.train()(images)
    return statistics(network)


def test_a_step_mixes_in_the_mean_of_its_micro_batches_statistics(toy_overrides: Overrides) -> None:
    spy = MicroBatches()
    network = run(toy_overrides(**PLAIN), BatchNormStatistics(), spy)

    running = statistics(spy.seen[0][0])
    assert len(spy.after_step) == 4
    for step, found in enumerate(spy.after_step):
        first, second = (batch_statistics(*spy.seen[2 * step + i]) for i in (0, 1))
        for name in running:
            running[name] = 0.9 * running[name] + 0.1 * (first[name] + second[name]) / 2
            torch.testing.assert_close(found[name], running[name], rtol=1e-4, atol=1e-5, msg=f"{step} {name}")
    assert {int(layer.num_batches_tracked) for layer in layers(network).values()} == {8}  # type: ignore[arg-type]


def test_the_layers_have_their_own_momentum_again_when_training_ends(toy_overrides: Overrides) -> None:
    network = run(toy_overrides(**PLAIN, model__bn_momentum=0.02), BatchNormStatistics())

    assert {layer.momentum for layer in layers(network).values()} == {0.02}


def test_a_network_without_batchnorm_trains(toy_overrides: Overrides) -> None:
    overrides = toy_overrides(**PLAIN, model__name="test_efficientnet_gn", model__compound_phi=None)

    assert not layers(run(overrides, BatchNormStatistics()))
