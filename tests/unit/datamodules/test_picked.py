"""A few samples of a split: evenly spaced, and as evaluation sees them."""

from collections.abc import Callable

import pytest
import torch

from configs.load import load_config
from datamodules.streaming.picked import picked_batches, spread
from trainer.assembly import build_datamodule

Overrides = Callable[..., list[str]]


@pytest.mark.parametrize(("samples", "count", "found"), [(10, 3, [0, 3, 6]), (3, 10, [0, 1, 2]), (4, 4, [0, 1, 2, 3])])
def test_samples_are_spread_evenly(samples: int, count: int, found: list[int]) -> None:
    assert spread(samples, count).tolist() == found


def test_picked_images_are_those_of_validation(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides()).config
    batches = list(picked_batches(config.data, config.data.val_shards, 12, image_size=64, in_chans=3))

    assert [len(batch.targets) for batch in batches] == [8, 4]
    assert torch.cat([batch.samples for batch in batches]).tolist() == spread(37, 12).tolist()

    datamodule = build_datamodule(config, "cpu")
    datamodule.trainer = type("Alone", (), {"global_rank": 0, "world_size": 1, "local_rank": 0})()  # type: ignore[assignment]
    datamodule.setup("validate")
    whole = torch.cat([batch.images for batch in datamodule.val_dataloader()])
    datamodule.teardown("validate")
    picked = torch.cat([batch.images for batch in batches])
    assert torch.equal(picked, whole[spread(37, 12)])
