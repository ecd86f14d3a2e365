"""Training in stages: what the network is given, and that a run killed around a border ends with the same weights."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy

from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, new_run, train, weights
from trainer.assembly import build_datamodule, build_module, build_trainer

Overrides = Callable[..., list[str]]
STAGES = (
    "[{until_epoch: 1, image_size: 32, auto_augment: rand-m1, mixup_alpha: 0.0, cutmix_alpha: 0.0, drop_rate: 0.0},"
    " {until_epoch: 2, image_size: 48, auto_augment: rand-m3, cutmix_alpha: 0.0, drop_rate: 0.1}]"
)
ENDS, LAST = (9, 17), 25
"""Optimizer steps after which the stages end, and the run: 129 samples in batches of 16."""


class Spy(Callback):
    """Keeps what holds in each micro-batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, float, tuple[float, float] | None, type]] = []
        self.evaluated: set[int] = set()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network
        module: Any = pl_module

        def keep(_: object, arguments: tuple[torch.Tensor]) -> None:
            side = arguments[0].shape[-1]
            if not network.training:
                self.evaluated.add(side)
                return
            mixup = module._mixup and (module._mixup.mixup_alpha, module._mixup.cutmix_alpha)
            self.seen.append((trainer.global_step, side, network.drop_rate, mixup, type(module._loss)))

        network.register_forward_pre_hook(keep)


def test_size_dropout_and_mixing_follow_the_stage_of_the_batch(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides(progressive__stages=STAGES, data__eval_image_size=80)).config
    spy = Spy()
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[spy], loggers=[])

    trainer.fit(build_module(config), build_datamodule(config, "cpu"))

    expected = []
    for step in range(LAST):
        stage = sum(step >= end for end in ENDS)
        mixup = (None, (0.2, 0.0), (0.2, 1.0))[stage]
        loss = SoftTargetCrossEntropy if mixup else LabelSmoothingCrossEntropy
        expected += [(step, (32, 48, 64)[stage], (0.0, 0.1, 0.2)[stage], mixup, loss)] * 2
    assert spy.seen == expected
    assert spy.evaluated == {80}


@pytest.fixture(scope="module")
def staged(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of three epochs in three stages that has kept a checkpoint of every step."""
    overrides = toy_overrides(
        progressive__stages=STAGES, data__num_workers=2, checkpoint__every_n_steps=1, checkpoint__keep_last=100
    )
    return train(new_run(overrides, tmp_path_factory.mktemp("staged")))


@pytest.mark.parametrize("step", [7, 8, 9, 10, 16, 17])
def test_a_run_killed_around_a_border_ends_with_the_same_weights(
    step: int, staged: RunDirectory, tmp_path: Path
) -> None:
    resumed = train(as_killed_after(staged, tmp_path, step=step), attempt=1)

    assert not changed(weights(staged, LAST), weights(resumed, LAST))
    assert not changed(average(staged, LAST), average(resumed, LAST))


def test_stages_make_another_training_of_it(staged: RunDirectory, toy_overrides: Overrides, tmp_path: Path) -> None:
    plain = train(new_run(toy_overrides(checkpoint__every_n_steps=1, checkpoint__keep_last=100), tmp_path))

    assert changed(weights(staged, 1), weights(plain, 1))
