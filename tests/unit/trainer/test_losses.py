"""timm's losses in a real loop, and runs with them that go on where they were."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, SoftTargetCrossEntropy

from datamodules.streaming.randomness import MICRO_BATCH, seed_everything
from tests.unit.trainer.runs import as_killed_after, average, changed, new_run, rows, train, weights
from tests.unit.trainer.settings import settings
from tests.unit.trainer.test_module import spied
from trainer.assembly import build_module
from trainer.losses import build_erasing, build_loss

Overrides = Callable[..., list[str]]
STILL = {"model__drop_rate": 0.0, "model__drop_path_rate": 0.0}
UNMIXED = {"loss__mixup_alpha": 0.0, "loss__cutmix_alpha": 0.0}
JSD = {
    **UNMIXED,
    "loss__name": "jsd",
    "data__augmentation__aug_splits": 3,
    "data__augmentation__auto_augment": "augmix-m3-w3",
}
BCE = {"loss__name": "bce", "loss__bce_target_thresh": 0.2, "loss__bce_sum": "true"}


def losses_by_hand(overrides: list[str], loss: Any, steps: int) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Losses of the micro-batches of the first step as trained, and as ``loss`` has them for a network of its own."""
    spy, module = spied(overrides)
    fresh = build_module(module.config)
    network, expected = fresh.network.train(), []
    for number in range(2):
        batch = spy.batches[number]
        seed_everything(module.config.seed, MICRO_BATCH, 0, number)
        images, targets = fresh.normalise(batch.images), batch.targets
        if fresh._mixup is not None:
            images, targets = fresh._mixup(images, targets)
        expected.append(loss(network(images), targets) / steps)
    return [each.detach() for each in spy.losses[:2]], expected


@pytest.mark.parametrize("mixing", [{}, UNMIXED], ids=["mixed", "unmixed"])
@pytest.mark.parametrize("thresh", [None, 0.2])
@pytest.mark.parametrize("in_all", [False, True])
def test_bce_is_timms(mixing: dict[str, float], thresh: float | None, in_all: bool, toy_overrides: Overrides) -> None:
    changes = {"loss__name": "bce", "loss__bce_target_thresh": thresh, "loss__bce_sum": str(in_all).lower()}
    theirs = BinaryCrossEntropy(0.1, target_threshold=thresh, sum_classes=in_all)
    found, expected = losses_by_hand(toy_overrides(trainer__max_steps=1, **changes, **mixing, **STILL), theirs, 2)

    torch.testing.assert_close(found, [each.detach() for each in expected], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_jsd_is_timms_over_the_views_of_a_micro_batch(smoothing: float, toy_overrides: Overrides) -> None:
    overrides = toy_overrides(trainer__max_steps=1, loss__label_smoothing=smoothing, **JSD, **STILL)
    found, expected = losses_by_hand(overrides, JsdCrossEntropy(num_splits=3, smoothing=smoothing), 2)

    torch.testing.assert_close(found, [each.detach() for each in expected], rtol=1e-5, atol=1e-6)


def test_a_micro_batch_of_views_has_as_many_samples_as_without(toy_overrides: Overrides) -> None:
    spy, _ = spied(toy_overrides(trainer__max_steps=2, **JSD))
    plain, _ = spied(toy_overrides(trainer__max_steps=2, **UNMIXED))

    for views, batch in zip(spy.batches, plain.batches, strict=True):
        assert views.samples.tolist() == batch.samples.tolist()
        assert views.targets.tolist() == batch.targets.tolist()
        assert len(views.images) == 3 * len(batch.images)


def test_erasing_leaves_clean_views_whole() -> None:
    config = settings(
        **{"loss__name": "jsd", "data__augmentation__aug_splits": 3, "data__augmentation__random_erasing_prob": 1.0},
        data__augmentation__auto_augment="augmix-m3-w3",
    )
    erasing = build_erasing(config.data.augmentation)
    assert erasing is not None
    images = torch.ones(12, 3, 32, 32)
    erased = (erasing(images.clone()) != images).flatten(1).any(1)

    assert erased.tolist() == [False] * 4 + [True] * 8


def test_mixed_targets_take_the_soft_loss() -> None:
    assert type(build_loss(settings(loss__mixup_alpha=0.2))) is SoftTargetCrossEntropy
    assert type(build_loss(settings(loss__mixup_alpha=0.2, loss__name="bce"))) is BinaryCrossEntropy


@pytest.mark.parametrize("changes", [BCE, {**JSD, "data__augmentation__random_erasing_prob": 0.5}], ids=["bce", "jsd"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_with_another_loss_resumes_bit_for_bit(
    changes: dict[str, Any], num_workers: int, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(
        trainer__max_steps=5, checkpoint__every_n_steps=1, data__num_workers=num_workers, **changes
    )
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=3), attempt=1)

    assert not changed(weights(run, 5), weights(resumed, 5))
    assert not changed(average(run, 5), average(resumed, 5))
    assert all(0 <= float(row["train/top1"]) <= 1 for row in rows(run) if row["train/top1"])
