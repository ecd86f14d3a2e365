"""Repeated augmentation: each sample several times in one global batch, each time drawn anew."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from timm.data import Mixup

from configs.batches import BatchLayout
from configs.checks.data import repeat_problems
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.urls import expand
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import TrainingPlan
from datamodules.streaming.source import ShardSource
from datamodules.streaming.transforms import training_transform
from tests.conftest import picture
from tests.unit.configs.loading import config_of
from tests.unit.datamodules.streaming.test_order import divisors, orders
from tests.unit.datamodules.streaming.test_transforms import data, sample

PASSES = 3
properties = settings(max_examples=60)


def repeated(order: TrainingOrder, repeats: int) -> TrainingOrder:
    """With each run of samples so often in its batch, which is so many times as large."""
    return TrainingOrder(
        order.shard_samples,
        seed=order.seed,
        global_batch_size=order.global_batch_size * repeats,
        num_lanes=order.num_lanes,
        window_shards=order.window_shards,
        repeats=repeats,
    )


@properties
@given(orders(), st.integers(1, 4))
def test_a_batch_holds_the_samples_of_a_smaller_one_several_times(order: TrainingOrder, repeats: int) -> None:
    larger = repeated(order, repeats)
    size = larger.global_batch_size
    for step in range(order.epoch_end(PASSES)):
        samples, passes = order.batch(step)
        found = zip(*(column.tolist() for column in (*larger.batch(step), larger.repeat((0, size)))), strict=True)
        plain = zip(samples.tolist(), passes.tolist(), strict=True)
        expected = ((sample, number, again) for sample, number in plain for again in range(repeats))
        assert Counter(found) == Counter(expected)


@properties
@given(orders(), st.integers(1, 4))
def test_an_epoch_keeps_its_steps_and_every_sample_comes_in_one_of_so_many(order: TrainingOrder, repeats: int) -> None:
    larger = repeated(order, repeats)
    plain = TrainingOrder(
        order.shard_samples,
        seed=0,
        global_batch_size=larger.global_batch_size,
        num_lanes=order.num_lanes,
        window_shards=1,
    )
    assert [larger.epoch_end(epochs) for epochs in range(7)] == [plain.epoch_end(epochs) for epochs in range(7)]
    steps = larger.epoch_end(PASSES * repeats)
    samples, passes = (np.concatenate(each) for each in zip(*(larger.batch(s) for s in range(steps)), strict=True))
    for number in range(PASSES):
        assert sorted(samples[passes == number]) == sorted([*range(order.samples)] * repeats)


@properties
@given(orders(), st.integers(2, 4), st.data())
def test_ranks_of_any_number_and_a_resumed_run_have_the_same_places(
    order: TrainingOrder, repeats: int, draw: st.DataObject
) -> None:
    larger = repeated(order, repeats)
    size = larger.global_batch_size
    micro = draw.draw(st.sampled_from(divisors(size)))
    world_size = draw.draw(st.sampled_from(divisors(size // micro)))
    layout = BatchLayout(global_batch_size=size, micro_batch_size=micro, world_size=world_size)
    step = draw.draw(st.integers(0, larger.epoch_end(2)))
    accumulate = layout.accumulate_grad_batches
    parts = [
        TrainingPlan(repeated(order, repeats), layout, rank).batch(step * accumulate + number)
        for rank in range(world_size)
        for number in range(accumulate)
    ]
    whole = TrainingPlan(larger, BatchLayout(global_batch_size=size, micro_batch_size=size, world_size=1), 0)
    for name in ("samples", "epochs", "repeats", "weights"):
        together = np.concatenate([getattr(part, name) for part in parts])
        np.testing.assert_array_equal(together, getattr(whole.batch(step), name))


@properties
@given(orders(), st.integers(2, 4), st.data())
def test_a_micro_batch_no_larger_than_a_lanes_run_holds_each_sample_once(
    order: TrainingOrder, repeats: int, draw: st.DataObject
) -> None:
    larger = repeated(order, repeats)
    fitting = [size for size in divisors(larger.global_batch_size) if size <= larger.per_lane // repeats]
    micro = draw.draw(st.sampled_from(fitting))
    for first in range(0, larger.global_batch_size, micro):
        samples, passes = larger.batch(3, (first, first + micro))
        assert len(set(zip(samples.tolist(), passes.tolist(), strict=True))) == micro


# Mixup


def partners(size: int, mode: str) -> list[int]:
    """The place that timm's Mixup mixes each place of a micro-batch with."""
    mixup = Mixup(mixup_alpha=1.0, mode=mode, label_smoothing=0.0, num_classes=size)
    found: dict[int, int] = {}
    while len(found) < size:  # a strength of 0 shows no partner
        _, targets = mixup(torch.zeros(size, 3, 1, 1), torch.arange(size))
        for place, target in enumerate(targets):
            others = [other for other in target.nonzero()[:, 0].tolist() if other != place]
            found |= {place: others[0]} if others else {}
    return [found[place] for place in range(size)]


@settings(max_examples=200)
@given(lanes=st.integers(1, 4), distinct=st.integers(1, 6), repeats=st.integers(2, 4), draw=st.data())
def test_mixup_mixes_no_sample_with_itself_unless_the_settings_are_refused(
    lanes: int, distinct: int, repeats: int, draw: st.DataObject
) -> None:
    size = lanes * distinct * repeats
    even = [number for number in divisors(size) if number % 2 == 0]
    assume(even)
    micro = draw.draw(st.sampled_from(even))
    order = TrainingOrder(
        np.array([size]), seed=0, global_batch_size=size, num_lanes=lanes, window_shards=1, repeats=repeats
    )
    places = [order.batch(0, (first, first + micro))[0] for first in range(0, size, micro)]
    with_itself = any((found == found[::-1]).any() for found in places)
    config = config_of()
    augmentation = config.data.augmentation.model_copy(update={"aug_repeats": repeats})
    batch = {"global_batch_size": size, "micro_batch_size": micro, "num_lanes": lanes, "augmentation": augmentation}
    mixing = {"data": config.data.model_copy(update=batch), "loss": config.loss.model_copy(update={"mixup_alpha": 0.2})}
    assert list(repeat_problems(config.model_copy(update=mixing))) or not with_itself


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixups_partners_are_those_that_the_check_goes_by(mode: str) -> None:
    assert partners(6, mode) == [5, 4, 3, 2, 1, 0]


# Images


def image(repeat: int, *, epoch: int = 2, number: int = 5) -> torch.Tensor:
    decode = Decode(training_transform(data(), 16), in_chans=3, num_classes=4, seed=7)
    fields = {"__index__": number, "__epoch__": epoch, "__repeat__": repeat}
    return decode(sample(picture(5, size=40), **fields))[0]


def test_each_repeat_is_drawn_by_seed_pass_sample_and_repeat() -> None:
    drawn = {
        image(repeat, epoch=epoch, number=number).numpy().tobytes()
        for repeat in range(3)
        for epoch in (2, 3)
        for number in (5, 6)
    }
    assert len(drawn) == 12
    assert all(torch.equal(image(repeat), image(repeat)) for repeat in range(3))


@pytest.fixture(scope="module")
def index(shards: Path) -> ShardIndex:
    return build_index(expand(f"{shards}/toy-train-*.tar"))


@pytest.fixture(scope="module")
def expected(index: ShardIndex) -> list[Batch]:
    return batches(index)


def batches(index: ShardIndex, *, world_size: int = 1, num_workers: int = 0, first: int = 0) -> list[Batch]:
    """Twelve global batches of 4 samples, three times each, from ``first`` on; those of all ranks, in micro-batches."""
    order = TrainingOrder(index.shard_samples, seed=3, global_batch_size=12, num_lanes=2, window_shards=2, repeats=3)
    layout = BatchLayout(global_batch_size=12, micro_batch_size=3, world_size=world_size)
    accumulate = layout.accumulate_grad_batches
    settings = data(num_workers=num_workers, prefetch_batches=2)
    decode = Decode(training_transform(settings, 16), in_chans=3, num_classes=4, seed=3)
    ranks = []
    for rank in range(world_size):
        source = ShardSource(index, TrainingPlan(order, layout, rank), first=first * accumulate)
        stream = TrainingStream(make_loader(source, decode, settings, batch_size=3, pin_memory=False), first=first)
        ranks.append(list(stream.take((12 - first) * accumulate)))
        stream.close()
    return [
        batch
        for step in range(12 - first)
        for rank in ranks
        for batch in rank[step * accumulate : (step + 1) * accumulate]
    ]


def test_every_repeat_of_a_loaded_batch_is_another_image(expected: list[Batch]) -> None:
    for step in range(12):
        parts = expected[4 * step : 4 * step + 4]
        images, samples = torch.cat([part.images for part in parts]), torch.cat([part.samples for part in parts])
        assert sorted(Counter(samples.tolist()).values()) == [3] * 4
        for number in samples.unique():
            versions = images[samples == number]
            assert len({version.numpy().tobytes() for version in versions}) == 3


@pytest.mark.parametrize(("world_size", "num_workers", "first"), [(2, 0, 0), (4, 1, 5)])
def test_ranks_workers_and_a_resumption_leave_every_image_as_it_is(
    world_size: int, num_workers: int, first: int, index: ShardIndex, expected: list[Batch]
) -> None:
    found = batches(index, world_size=world_size, num_workers=num_workers, first=first)
    for one, other in zip(found, expected[4 * first :], strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
