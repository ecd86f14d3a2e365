"""Runs whose samples come several times in a batch: counts, epochs, and a resumption that is exact."""

from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Callback, LightningModule, Trainer

from configs.load import load_config
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, new_run, rows, train, weights
from trainer.assembly import build_datamodule, build_module, build_trainer

Overrides = Callable[..., list[str]]
TWICE = {"data__augmentation__aug_repeats": 2, "trainer__max_epochs": 1}
JSD = {
    "loss__name": "jsd",
    "loss__mixup_alpha": 0.0,
    "loss__cutmix_alpha": 0.0,
    "data__augmentation__aug_splits": 2,
}


@pytest.mark.parametrize("changes", [{}, JSD], ids=["mixup", "views"])
def test_a_run_with_repeats_counts_images_and_resumes_bit_for_bit(
    changes: dict[str, Any], toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(**TWICE, **changes, checkpoint__every_n_steps=1, checkpoint__keep_last=100)
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=5), attempt=1)

    assert not changed(weights(run, 9), weights(resumed, 9))
    assert not changed(average(run, 9), average(resumed, 9))
    found = [row for row in rows(run) if row["train/loss"]]
    assert [int(row["samples_seen"]) for row in found] == [16 * step for step in range(1, 10)]
    assert [float(row["epoch"]) for row in found] == pytest.approx([16 * step / 129 for step in range(1, 10)])


class Seen(Callback):
    """The samples of each micro-batch."""

    def __init__(self) -> None:
        self.samples: list[list[int]] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.samples.append(batch.samples.tolist())


def test_two_epochs_of_two_repeats_train_on_each_sample_twice(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides(**TWICE | {"trainer__max_epochs": 2})).config
    seen, datamodule = Seen(), build_datamodule(config, "cpu")
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[seen], loggers=[])
    trainer.fit(build_module(config), datamodule)

    assert trainer.global_step == 17  # 258 images of 129 samples, in batches of 16
    steps = [[*first, *second] for first, second in zip(seen.samples[::2], seen.samples[1::2], strict=True)]
    assert all(len(set(step)) == 8 and max(map(step.count, step)) == 2 for step in steps[:-1])
    assert set(chain(*steps)) == set(range(129))
    assert len(set(chain(*steps[:8]))) == 64  # half of them in the first epoch's whole batches
