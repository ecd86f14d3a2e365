"""Batches on their way from workers: layout, and shared memory that is used again but never under a reader."""

import gc
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.batches import BatchLayout
from configs.schema import Data
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.urls import expand
from datamodules.streaming import batch_memory
from datamodules.streaming.batch_memory import BatchMemory, SlotOfBatch
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, Collate, TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import TrainingPlan
from datamodules.streaming.source import ShardSource
from datamodules.streaming.transforms import training_transform

SIZE = 16


@pytest.fixture(scope="module")
def index(shards: Path) -> ShardIndex:
    return build_index(expand(f"{shards}/toy-train-*.tar"))


@contextmanager
def stream(index: ShardIndex, num_workers: int, *, image_bytes: int | None, **changes: Any) -> Iterator[TrainingStream]:
    settings = {"train_shards": "train", "val_shards": "val", "num_workers": num_workers, "prefetch_batches": 2}
    data = Data.model_validate(settings)
    order = TrainingOrder(index.shard_samples, seed=3, global_batch_size=8, num_lanes=4, window_shards=2)
    layout = BatchLayout(global_batch_size=8, micro_batch_size=8, world_size=1)
    decode = Decode(training_transform(data, SIZE), in_chans=3, num_classes=4, seed=3)
    source = ShardSource(index, TrainingPlan(order, layout, 0))
    options = {"batch_size": 8, "pin_memory": False, "image_bytes": image_bytes} | changes
    with closing(TrainingStream(make_loader(source, decode, data, **options), first=0)) as found:
        yield found


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("image_bytes", [None, 3 * SIZE * SIZE])
def test_images_lie_in_memory_as_the_network_wants_them(
    num_workers: int, image_bytes: int | None, index: ShardIndex
) -> None:
    with stream(index, num_workers, image_bytes=image_bytes) as batches:
        images = next(batches.take(1)).images
    assert images.dtype == torch.uint8
    assert images.shape == (8, 3, SIZE, SIZE)
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("image_bytes", [None, 3 * SIZE * SIZE])
def test_batches_for_a_gpu_are_pinned_and_otherwise_the_same(
    num_workers: int, image_bytes: int | None, index: ShardIndex, expected: list[Batch]
) -> None:
    with stream(index, num_workers, image_bytes=image_bytes, pin_memory=True) as batches:
        found = list(batches.take(40))
    assert all(tensor.is_pinned() for batch in found for tensor in batch)
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in found)
    assert_equal(found, expected)


@pytest.fixture(scope="module")
def expected(index: ShardIndex) -> list[Batch]:
    with stream(index, 0, image_bytes=None) as batches:
        return list(batches.take(40))


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("image_bytes", [None, 3 * SIZE * SIZE, 5])
def test_batches_that_are_kept_stay_as_they_were(
    num_workers: int, image_bytes: int | None, index: ShardIndex, expected: list[Batch]
) -> None:
    """All slots are soon taken (or too small from the start); then batches get memory of their own."""
    with stream(index, num_workers, image_bytes=image_bytes) as batches:
        found = list(batches.take(40))
        assert_equal(found, expected)
    assert_equal(found, expected)  # also when the workers are gone


def test_a_view_is_enough_to_keep_a_batch(index: ShardIndex, expected: list[Batch]) -> None:
    with stream(index, 1, image_bytes=3 * SIZE * SIZE) as batches:
        views = [batch.images[2:3, 1].numpy() for batch in batches.take(40)]
    for view, batch in zip(views, expected, strict=True):
        assert (view == batch.images[2:3, 1].numpy()).all()


def test_batches_that_are_dropped_come_in_the_same_few_places(index: ShardIndex, expected: list[Batch]) -> None:
    with stream(index, 2, image_bytes=3 * SIZE * SIZE) as batches:
        places = set()
        for batch, other in zip(batches.take(40), expected, strict=True):
            assert torch.equal(batch.images, other.images)
            places.add(batch.images.data_ptr())
            del batch
    assert len(places) <= 2 * (2 + 2)


def test_a_slot_is_free_when_its_last_reader_is_gone() -> None:
    memory, shape = BatchMemory(12, workers=2, slots_per_worker=2), (1, 2, 2, 3)
    first, second = (memory.take(1, shape) for _ in range(2))
    assert first is not None
    assert second is not None
    assert memory.take(1, shape) is None
    assert memory.take(0, shape) is not None  # another worker's slots are its own
    first[0].fill_(7)
    slots = [int(found[1]._parts[1]) for found in (first, second)]
    delivered = memory.deliver(slots[0], shape)
    part = delivered[0, 1]
    del first, delivered
    memory.deliver(slots[1], shape)
    assert memory.take(1, shape) is None
    assert part.tolist() == [[7, 7], [7, 7]]
    del part
    gc.collect()
    memory.deliver(slots[1], shape)
    assert memory.take(1, shape) is not None


def test_what_arrives_after_its_loader_is_gone_is_empty() -> None:
    deliver, parts = SlotOfBatch(10**9, 0, (1, 2, 2, 3)).__reduce__()
    assert deliver is batch_memory._deliver
    assert deliver(*parts).numel() == 0


def test_samples_of_any_layout_are_collated() -> None:
    image = torch.arange(2 * 3 * 4, dtype=torch.uint8).view(2, 3, 4)
    flipped = image.flip(-1).permute(0, 2, 1).contiguous().permute(0, 2, 1)
    batch = Collate()([(image, 1, 2**40, 0.0, True), (flipped, 0, 5, 1.0, False)])
    assert torch.equal(batch.images, torch.stack([image, image.flip(-1)]))
    assert batch.samples.tolist() == [2**40, 5]
    assert batch.substituted.tolist() == [True, False]
