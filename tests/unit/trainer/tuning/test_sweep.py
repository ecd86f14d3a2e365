"""The sweep on real batches of the toy shards, in this process."""

from collections.abc import Callable

import numpy as np
import pytest
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from configs.load import load_config
from configs.run import RunDirectory
from configs.schema import Config
from tests.unit.trainer.runs import ALONE, rows
from tests.unit.trainer.settings import settings
from trainer.tuning.attempt import first_phase, last_phase, try_training
from trainer.tuning.sweep import LearningRateSweep

Overrides = Callable[..., list[str]]


class Rates(Callback):
    """What the optimizer steps with."""

    def __init__(self) -> None:
        self.seen: list[list[float]] = []
        self.frozen: list[bool] = []
        self.validations = 0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self.seen.append([group["lr"] for group in optimizer.param_groups])
        self.frozen.append(bool(pl_module.backbone_is_frozen))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += 1


def swept(config: Config, *, steps: int, max_lr: float = 0.1) -> tuple[LearningRateSweep, Rates, list[int]]:
    heard: list[int] = []
    sweep = LearningRateSweep(min_lr=1e-4, max_lr=max_lr, steps=steps, on_step=heard.append)
    rates = Rates()
    try_training(first_phase(config, steps=steps), ALONE, [sweep, rates])
    return sweep, rates, heard


def test_rates_rise_exponentially_past_the_runs_own_end_and_keep_their_layer_wise_factors(
    toy_overrides: Overrides,
) -> None:
    config = load_config([], toy_overrides(optimizer__layer_decay=0.5, trainer__max_epochs=1)).config
    steps = 12  # an epoch has 9, or 8
    sweep, rates, heard = swept(config, steps=steps)

    expected = np.geomspace(1e-4, 0.1, steps)
    assert sweep.lrs == pytest.approx(expected)
    assert heard == list(range(1, steps + 1))
    assert not sweep.diverged
    assert rates.validations == 0
    assert [max(seen) for seen in rates.seen] == pytest.approx(expected)
    shares = np.array(rates.seen) / expected[:, None]
    assert len(np.unique(shares[0].round(6))) > 2
    assert shares == pytest.approx(np.broadcast_to(shares[0], shares.shape))


def test_a_steps_loss_is_that_of_its_whole_batch_as_in_training(
    toy_overrides: Overrides, trained: RunDirectory
) -> None:
    sweep, _, _ = swept(load_config([], toy_overrides(trainer__max_epochs=2)).config, steps=2)

    assert sweep.losses[0] == pytest.approx(float(rows(trained)[0]["train/loss"]), rel=1e-5)


def test_the_sweep_ends_where_the_loss_diverges_and_notes_no_loss_that_is_not_finite(toy_overrides: Overrides) -> None:
    sweep, _, heard = swept(load_config([], toy_overrides()).config, steps=30, max_lr=1e12)

    assert sweep.diverged
    assert 5 < len(heard) < 30
    assert len(sweep.lrs) == len(sweep.losses) >= len(heard) - 1
    assert np.isfinite(sweep.losses).all()


def test_a_loss_that_is_no_number_is_divergence() -> None:
    sweep = LearningRateSweep(min_lr=1e-4, max_lr=1, steps=9, on_step=lambda _: None)

    assert [sweep._diverges(loss) for loss in (3.0, 2.0, 2.5, 12.0)] == [False] * 4  # a single spike is none
    assert sweep._diverges(50.0)
    assert sweep._diverges(float("nan"))


def test_a_frozen_backbone_stays_frozen_for_the_whole_sweep(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides(model__freeze_backbone_epochs=1)).config
    _, rates, _ = swept(config, steps=12)

    assert rates.frozen == [True] * 12


def test_phases_are_the_first_for_a_sweep_and_the_one_that_needs_most_for_a_trial() -> None:
    stages = "[{until_epoch: 1, image_size: 32}, {until_epoch: 2, image_size: 48}]"
    config = settings(data__image_size=64, progressive__stages=stages, model__freeze_backbone_epochs=2)

    first, last = first_phase(config, steps=1000), last_phase(config, steps=1000)
    assert [stage.until_epoch for stage in first.progressive.stages] == [1001, 1002]
    assert first.model.freeze_backbone_epochs == 1002
    assert (last.progressive.stages, last.model.freeze_backbone_epochs) == ((), 0)
    assert {each.trainer.max_epochs >= 1000 and each.trainer.max_steps == 1000 for each in (first, last)} == {True}
