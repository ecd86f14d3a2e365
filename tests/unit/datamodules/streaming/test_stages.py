"""Batches of progressive learning: each has the image size and augmentation of the stage that its place is in."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.schema import Augmentation, Data
from datamodules.imagenet import ImageNetDataModule
from datamodules.making.shards import Image, write_split
from datamodules.streaming.loaders import Batch
from tests.conftest import picture

SAMPLES, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 129, 16, 4, 3
ENDS, SIZES = (1, 2), (32, 40, 48)
STEPS = -(-EPOCHS * SAMPLES // GLOBAL_BATCH)
Build = Callable[..., ImageNetDataModule]


def size_of(global_batch: int) -> int:
    """By the epoch of the batch's first sample, if the epochs are laid end to end."""
    return SIZES[sum(global_batch * GLOBAL_BATCH // SAMPLES >= end for end in ENDS)]


@pytest.fixture
def build(shards: Path) -> Iterator[Build]:
    made: list[ImageNetDataModule] = []

    def make(*, rank: int = 0, world_size: int = 1, step: int = 0, epoch: int = 0, **changes: Any) -> Any:
        data = Data.model_validate(
            {
                "train_shards": f"{shards}/toy-train-*.tar",
                "val_shards": f"{shards}/toy-validation-*.tar",
                "num_classes": 4,
                "global_batch_size": GLOBAL_BATCH,
                "micro_batch_size": MICRO_BATCH,
                "eval_batch_size": 8,
                "num_workers": 0,
                "num_lanes": 4,
                "augmentation": Augmentation(auto_augment="rand-m9-mstd0.5"),
            }
            | changes
        )
        gentle = data.augmentation.model_copy(update={"auto_augment": None})
        stages = [
            (end, data.model_copy(update={"image_size": size, "augmentation": gentle}))
            for end, size in zip(ENDS, SIZES[:-1], strict=True)
        ]
        module = ImageNetDataModule(data, seed=3, image_size=SIZES[-1], in_chans=3, stages=stages)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, local_rank=0, world_size=world_size, global_step=step, current_epoch=epoch
        )
        made.append(module)
        module.setup("fit")
        return module

    yield make
    for module in made:
        module.teardown("fit")


def train(module: ImageNetDataModule) -> list[Batch]:
    """This rank's micro-batches of the epochs that are left."""
    trainer: Any = module.trainer
    batches: list[Any] = []
    for epoch in range(trainer.current_epoch, EPOCHS):
        trainer.current_epoch = epoch
        loader = module.train_dataloader()
        batches += [module.transfer_batch_to_device(batch, torch.device("cpu"), 0) for batch in loader]
        trainer.global_step += len(loader) // module.layout.accumulate_grad_batches
    return batches


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_each_batch_has_the_size_of_its_stage_and_one_size_alone(build: Build) -> None:
    batches = train(build())

    assert [batch.images.shape[-1] for batch in batches] == [size_of(n // 4) for n in range(STEPS * 4)]
    assert size_of(8) == SIZES[0]  # it spans two epochs: 129 samples end in the ninth batch
    assert {batch.images.shape[2:] for batch in batches} == {(size, size) for size in SIZES}


def test_a_stage_has_an_augmentation_of_its_own(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = train(build(augmentation=Augmentation()))
    augmented = train(build())

    same = [torch.equal(a.images, b.images) for a, b in zip(plain, augmented, strict=True)]
    first_of_last = next(n for n in range(STEPS) if size_of(n) == SIZES[-1]) * 4
    assert all(same[:first_of_last])
    assert not any(same[first_of_last:])


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_that_run_ahead_give_the_same_batches(num_workers: int, build: Build) -> None:
    expected = [Batch(*(part.clone() for part in batch)) for batch in train(build())]

    assert_equal(train(build(num_workers=num_workers, prefetch_batches=8)), expected)


@pytest.mark.parametrize("world_size", [2, 4])
def test_any_number_of_ranks_gets_the_same_batches(world_size: int, build: Build) -> None:
    expected = train(build())

    ranks = [train(build(rank=rank, world_size=world_size)) for rank in range(world_size)]
    each = 4 // world_size
    together = [batch for step in range(STEPS) for rank in ranks for batch in rank[step * each : (step + 1) * each]]
    assert_equal(together, expected)


@pytest.mark.parametrize("step", [7, 8, 9, 16, 17])
def test_going_on_around_a_border_gives_the_batches_that_are_left(step: int, build: Build) -> None:
    expected = train(build())

    epoch = sum(step >= -(-end * SAMPLES // GLOBAL_BATCH) for end in (1, 2))
    assert_equal(train(build(step=step, epoch=epoch, num_workers=2)), expected[step * 4 :])


def test_batches_that_are_passed_over_take_their_stage_with_them(build: Build) -> None:
    expected = train(build())

    module = build(step=5, num_workers=2)
    module.positions = replace(module.positions, order=replace(module.order, passed_over=3))
    assert [module.stage(step) for step in (4, 5, 6)] == [0, 0, 1]
    assert_equal(train(module), expected[8 * 4 :])


def test_evaluation_has_a_size_of_its_own(build: Build) -> None:
    assert {batch.images.shape[-1] for batch in build().val_dataloader()} == {SIZES[-1]}
    assert {batch.images.shape[-1] for batch in build(eval_image_size=64, num_workers=1).val_dataloader()} == {64}


def test_jpegs_are_decoded_by_the_device_at_the_sizes_of_the_stages(build: Build, tmp_path: Path) -> None:
    files = [Image(f"{n:03}", "jpg", n % 4, partial(picture, n, 60, "RGB", "JPEG")) for n in range(SAMPLES)]
    write_split(files, tmp_path, name="jpeg", split="train", num_shards=4, seed=1)
    options = {"train_shards": f"{tmp_path}/jpeg-train-*.tar", "augmentation": Augmentation()}

    found, expected = train(build(decoder="nvjpeg", **options)), train(build(**options))

    assert [batch.images.shape for batch in found] == [batch.images.shape for batch in expected]
    assert {batch.images.shape[-1] for batch in found} == set(SIZES)
    for one, other in zip(found, expected, strict=True):
        assert (one.images.float() - other.images.float()).abs().mean() < 0.5


def test_a_device_that_decodes_makes_the_sizes_of_the_stages(build: Build) -> None:
    """The toy shards' PNGs are decoded by workers; their pixels travel with the batch."""
    plain = Augmentation()

    found = train(build(decoder="nvjpeg", augmentation=plain, num_workers=1))

    assert_equal(found, train(build(augmentation=plain)))
