"""Activations computed once more in the backward pass leave no trace: dropout, stochastic depth and BatchNorm on."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, new_run, rows, train, weights
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics

Overrides = Callable[..., list[str]]
RANDOM = {"model__drop_rate": 0.3, "model__drop_path_rate": 0.3, "trainer__max_steps": 5}
SAVES = {"checkpoint__every_n_steps": 1, "checkpoint__keep_last": 9}


@pytest.fixture(scope="module")
def recomputed(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    overrides = toy_overrides(trainer__gradient_checkpointing="true", **RANDOM, **SAVES)
    return train(new_run(overrides, tmp_path_factory.mktemp("recomputed")))


def test_weights_statistics_and_losses_are_those_without_bit_for_bit(
    recomputed: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    plain = train(new_run(toy_overrides(**RANDOM, **SAVES), tmp_path))

    for step in range(1, 6):
        assert not changed(weights(plain, step), weights(recomputed, step)), step
        assert not changed(average(plain, step), average(recomputed, step)), step
    assert [row["train/loss"] for row in rows(plain)] == [row["train/loss"] for row in rows(recomputed)]


def test_a_run_goes_on_bit_for_bit_with_it_and_without(recomputed: RunDirectory, tmp_path: Path) -> None:
    again = train(as_killed_after(recomputed, tmp_path / "with", step=3), attempt=1)
    copy = as_killed_after(recomputed, tmp_path / "without", step=3)
    settings = copy.config_file.read_text().replace("gradient_checkpointing: true", "gradient_checkpointing: false")
    copy.config_file.write_text(settings)
    assert not copy.load_config().trainer.gradient_checkpointing

    assert not changed(weights(recomputed, 5), weights(again, 5))
    assert not changed(weights(recomputed, 5), weights(train(copy, attempt=1), 5))


class Calls(Callback):
    """How often a block is computed in training."""

    count = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        block = pl_module.network.blocks[1]

        def count(*_: object) -> None:
            self.count += torch.is_grad_enabled()

        block[0].register_forward_pre_hook(count)


@pytest.mark.parametrize(("enabled", "times"), [("true", 2), ("false", 1)])
def test_blocks_are_computed_twice(enabled: str, times: int, toy_overrides: Overrides) -> None:
    overrides = toy_overrides(**RANDOM, trainer__gradient_checkpointing=enabled, trainer__check_val_every_n_epoch=9)
    config = load_config([], overrides).config
    calls = Calls()
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[calls, BatchNormStatistics()], loggers=[])
    trainer.fit(build_module(config), build_datamodule(config, "cpu"))

    assert calls.count == 10 * times
