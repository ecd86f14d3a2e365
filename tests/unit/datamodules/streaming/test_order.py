"""The order of training samples, for shards of any size, any batch, lanes and windows."""

import pickle
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.batches import BatchLayout
from datamodules.streaming.order import ORDER_VERSION, TrainingOrder, permutation
from datamodules.streaming.plans import TrainingPlan

EPOCHS = 3
properties = settings(max_examples=60)


@st.composite
def orders(draw: st.DrawFn, max_shards: int = 9, max_samples: int = 12) -> TrainingOrder:
    lanes = draw(st.integers(1, 6))
    return TrainingOrder(
        np.array(draw(st.lists(st.integers(1, max_samples), min_size=1, max_size=max_shards)), dtype=np.int64),
        seed=draw(st.integers(0, 2**40)),
        global_batch_size=lanes * draw(st.integers(1, 5)),
        num_lanes=lanes,
        window_shards=draw(st.integers(1, 5)),
    )


def fresh(order: TrainingOrder) -> TrainingOrder:
    """The same order with nothing computed yet."""
    return TrainingOrder(
        order.shard_samples,
        seed=order.seed,
        global_batch_size=order.global_batch_size,
        num_lanes=order.num_lanes,
        window_shards=order.window_shards,
    )


def stream(order: TrainingOrder, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Samples and epochs of the first global batches, both (steps, global_batch_size)."""
    samples, epochs = zip(*(order.batch(step) for step in range(steps)), strict=True)
    return np.stack(samples), np.stack(epochs)


def shard_of(order: TrainingOrder, samples: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.cumsum(order.shard_samples), samples, side="right")


def divisors(number: int) -> list[int]:
    return [n for n in range(1, number + 1) if number % n == 0]


@properties
@given(orders())
def test_every_sample_comes_exactly_once_an_epoch_across_the_seams_too(order: TrainingOrder) -> None:
    samples, epochs = stream(order, order.epoch_end(EPOCHS))
    for epoch in range(EPOCHS):
        assert sorted(samples[epochs == epoch]) == list(range(order.samples))


@properties
@given(orders())
def test_a_batch_holds_the_epochs_that_its_place_in_the_count_of_samples_says(order: TrainingOrder) -> None:
    size = order.global_batch_size
    _, epochs = stream(order, order.epoch_end(EPOCHS))
    for step, found in enumerate(epochs):
        assert step * size // order.samples <= found.min()
        assert found.max() <= ((step + 1) * size - 1) // order.samples
        assert order.epochs_before(step) == step * size // order.samples


@properties
@given(orders())
def test_an_epoch_ends_with_the_first_step_by_which_all_its_samples_have_been_seen(order: TrainingOrder) -> None:
    for epoch in range(1, EPOCHS + 1):
        assert order.epochs_before(order.epoch_end(epoch)) >= epoch
        assert order.epochs_before(order.epoch_end(epoch) - 1) < epoch


@properties
@given(orders(), st.data())
def test_ranks_split_each_global_batch_without_changing_samples_or_order(
    order: TrainingOrder, data: st.DataObject
) -> None:
    micro = data.draw(st.sampled_from(divisors(order.global_batch_size)))
    world_size = data.draw(st.sampled_from(divisors(order.global_batch_size // micro)))
    layout = BatchLayout(global_batch_size=order.global_batch_size, micro_batch_size=micro, world_size=world_size)
    plans = [TrainingPlan(fresh(order), layout, rank) for rank in range(world_size)]
    accumulate = layout.accumulate_grad_batches
    for step in range(order.epoch_end(EPOCHS)):
        parts = [plan.batch(number) for plan in plans for number in range(step * accumulate, (step + 1) * accumulate)]
        assert all(len(part.samples) == micro and part.weights.tolist() == [1] * micro for part in parts)
        samples, epochs = order.batch(step)
        np.testing.assert_array_equal(np.concatenate([part.samples for part in parts]), samples)
        np.testing.assert_array_equal(np.concatenate([part.epochs for part in parts]), epochs)
        assert len(set(zip(samples.tolist(), epochs.tolist(), strict=True))) == order.global_batch_size


@properties
@given(orders(), st.data())
def test_any_place_can_be_asked_for_in_any_order(order: TrainingOrder, data: st.DataObject) -> None:
    steps = order.epoch_end(EPOCHS)
    samples, epochs = stream(order, steps)
    other = fresh(order)
    for _ in range(10):
        step = data.draw(st.integers(0, steps - 1))
        first = data.draw(st.integers(0, order.global_batch_size - 1))
        last = data.draw(st.integers(first + 1, order.global_batch_size))
        found, found_epochs = other.batch(step, (first, last))
        np.testing.assert_array_equal(found, samples[step, first:last])
        np.testing.assert_array_equal(found_epochs, epochs[step, first:last])


@properties
@given(orders(), st.data())
def test_a_run_resumed_at_any_micro_batch_sees_the_same_rest(order: TrainingOrder, data: st.DataObject) -> None:
    micro = data.draw(st.sampled_from(divisors(order.global_batch_size)))
    layout = BatchLayout(global_batch_size=order.global_batch_size, micro_batch_size=micro, world_size=1)
    end = order.epoch_end(2) * layout.accumulate_grad_batches
    whole = [TrainingPlan(order, layout, 0).batch(number) for number in range(end)]
    first = data.draw(st.integers(0, end - 1))
    resumed = TrainingPlan(pickle.loads(pickle.dumps(fresh(order))), layout, 0)  # as a worker process gets it
    for number in range(first, end):
        np.testing.assert_array_equal(resumed.batch(number).samples, whole[number].samples)
        np.testing.assert_array_equal(resumed.batch(number).epochs, whole[number].epochs)


@properties
@given(orders(), st.integers(1, 9), st.data())
def test_batches_passed_over_move_every_batch_and_every_end_of_an_epoch(
    order: TrainingOrder, passed_over: int, data: st.DataObject
) -> None:
    moved = replace(fresh(order), passed_over=passed_over)
    step = data.draw(st.integers(0, 40))
    for found, expected in zip(moved.batch(step), order.batch(step + passed_over), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert moved.epochs_before(step) == order.epochs_before(step + passed_over)
    assert moved.epoch_end(EPOCHS) == order.epoch_end(EPOCHS) - passed_over


@properties
@given(orders(max_shards=20), st.data())
def test_nodes_share_no_shard_of_an_epoch_but_those_that_lie_across_their_borders(
    order: TrainingOrder, data: st.DataObject
) -> None:
    nodes = data.draw(st.sampled_from(divisors(order.num_lanes)))
    samples, epochs = stream(order, order.epoch_end(EPOCHS))
    node = np.broadcast_to(np.arange(order.global_batch_size) * nodes // order.global_batch_size, samples.shape)
    for epoch in range(EPOCHS):
        of_epoch = epochs == epoch
        readers = defaultdict(set)
        for shard, reader in zip(shard_of(order, samples[of_epoch]), node[of_epoch], strict=True):
            readers[int(shard)].add(int(reader))
        # nodes take neighbouring stretches of the line of shards: nodes - 1 borders, each inside one shard at most
        assert sum(len(found) - 1 for found in readers.values()) <= nodes - 1
        assert all(max(found) - min(found) == len(found) - 1 for found in readers.values())


@properties
@given(
    nodes=st.integers(1, 4),
    lanes_of_a_node=st.integers(1, 3),
    shards_of_a_lane=st.integers(1, 4),
    shard_samples=st.integers(1, 12),
    per_lane=st.integers(1, 3),
    seed=st.integers(0, 2**32),
)
def test_nodes_share_no_shard_at_all_where_shards_of_one_size_can_be_dealt_evenly(
    nodes: int, lanes_of_a_node: int, shards_of_a_lane: int, shard_samples: int, per_lane: int, seed: int
) -> None:
    lanes = nodes * lanes_of_a_node
    sizes = np.full(lanes * shards_of_a_lane, shard_samples, dtype=np.int64)
    order = TrainingOrder(
        sizes, seed=seed, global_batch_size=lanes * per_lane, num_lanes=lanes, window_shards=shards_of_a_lane
    )
    samples, epochs = stream(order, order.epoch_end(EPOCHS))
    node = np.broadcast_to(np.arange(order.global_batch_size) * nodes // order.global_batch_size, samples.shape)
    readers = defaultdict(set)
    for epoch, shard, reader in zip(epochs.flat, shard_of(order, samples).flat, node.flat, strict=True):
        readers[int(epoch), int(shard)].add(int(reader))
    assert all(len(found) == 1 for found in readers.values())


@properties
@given(orders(max_shards=20))
def test_a_lane_has_no_more_shards_open_than_a_window_holds(order: TrainingOrder) -> None:
    samples, epochs = stream(order, order.epoch_end(EPOCHS))
    per_lane = order.global_batch_size // order.num_lanes
    for lane in range(order.num_lanes):
        part = slice(lane * per_lane, (lane + 1) * per_lane)
        for epoch in range(EPOCHS):
            shards = shard_of(order, samples[:, part][epochs[:, part] == epoch]).tolist()
            first = {shard: shards.index(shard) for shard in set(shards)}
            last = {shard: len(shards) - 1 - shards[::-1].index(shard) for shard in set(shards)}
            for place in range(len(shards)):
                assert sum(first[s] <= place <= last[s] for s in first) <= order.window_shards


@properties
@given(orders())
def test_lanes_have_equal_shares_of_an_epoch_to_within_a_sample(order: TrainingOrder) -> None:
    _, epochs = stream(order, order.epoch_end(EPOCHS))
    per_lane = order.global_batch_size // order.num_lanes
    lanes = epochs.reshape(len(epochs), order.num_lanes, per_lane)
    for epoch in range(EPOCHS):
        counts = (lanes == epoch).sum(axis=(0, 2))
        assert counts.max() - counts.min() <= 1


@properties
@given(st.integers(0, 200), st.lists(st.integers(0, 2**70), min_size=1, max_size=5))
def test_a_permutation_has_every_number_once(size: int, key: list[int]) -> None:
    found = permutation(size, *key)
    assert found.dtype == np.int64
    assert sorted(found.tolist()) == list(range(size))
    np.testing.assert_array_equal(found, permutation(size, *key))


def toy(**changes: int) -> TrainingOrder:
    arguments = {"seed": 7, "global_batch_size": 12, "num_lanes": 4, "window_shards": 2} | changes
    return TrainingOrder(np.array([5, 1, 9, 7, 1, 8, 6, 4], dtype=np.int64), **arguments)


def test_each_epoch_and_each_seed_has_another_order() -> None:
    order = toy(num_lanes=1, global_batch_size=41)
    samples, epochs = stream(order, 4)
    assert (epochs == np.arange(4)[:, None]).all()
    other, _ = stream(toy(num_lanes=1, global_batch_size=41, seed=8), 4)
    assert len({tuple(row) for row in (*samples.tolist(), *other.tolist())}) == 8


def test_samples_of_a_window_are_shuffled_together() -> None:
    order = TrainingOrder(np.full(6, 50, dtype=np.int64), seed=0, global_batch_size=300, num_lanes=1, window_shards=3)
    shards = shard_of(order, order.batch(0)[0])
    assert len(set(shards[:150].tolist())) == 3
    assert len(set(shards[:10].tolist())) > 1
    assert set(shards[:150].tolist()).isdisjoint(shards[150:].tolist())


def test_shards_take_every_place_in_an_epoch_equally_often() -> None:
    order = TrainingOrder(np.ones(5, dtype=np.int64), seed=3, global_batch_size=5, num_lanes=1, window_shards=1)
    counts = np.zeros((5, 5))
    for step in range(2000):
        counts[np.arange(5), order.batch(step)[0]] += 1
    assert abs(counts - 400).max() < 5 * (400 * 0.8) ** 0.5  # five standard deviations


GOLDEN_SAMPLES = [
    [18, 22, 19, 11, 7, 35, 14, 13, 5, 30, 39, 28],
    [15, 17, 21, 33, 9, 34, 12, 23, 2, 24, 40, 37],
    [16, 20, 32, 36, 6, 10, 4, 3, 0, 25, 29, 26],
    [31, 32, 16, 8, 28, 34, 1, 4, 0, 27, 38, 38],
    [21, 20, 17, 36, 29, 26, 1, 30, 3, 37, 9, 13],
    [18, 19, 31, 24, 27, 35, 2, 5, 22, 12, 39, 10],
    [33, 15, 5, 25, 23, 37, 7, 8, 6, 11, 40, 14],
]
GOLDEN_EPOCHS_OF_BATCH_3 = [0, 1, 1, 0, 1, 1, 0, 1, 1, 0, 0, 1]
GOLDEN_PERMUTATION = [1, 2, 4, 6, 5, 0, 7, 3]
GOLDEN_FAR = ([9, 28, 26, 30, 0], [292682927, 292682926, 292682926, 292682927, 292682926])


def test_the_order_of_version_1_is_this_one() -> None:
    """If this fails, the order has changed: runs cannot go on from older checkpoints, and ORDER_VERSION must say so."""
    assert ORDER_VERSION == 1
    samples, epochs = stream(toy(), 7)
    assert samples.tolist() == GOLDEN_SAMPLES
    assert epochs[3].tolist() == GOLDEN_EPOCHS_OF_BATCH_3
    assert permutation(8, 1, 2, 3).tolist() == GOLDEN_PERMUTATION
    far, far_epochs = toy(seed=2**35 + 1).batch(10**9, (5, 10))
    assert (far.tolist(), far_epochs.tolist()) == GOLDEN_FAR


def test_a_billion_samples_are_ordered_without_being_listed() -> None:
    shards = 1_000_000
    sizes = np.full(shards, 1000, dtype=np.int64)
    order = TrainingOrder(sizes, seed=1, global_batch_size=4096, num_lanes=64, window_shards=4)
    samples, epochs = order.batch(0)
    assert len(set(samples.tolist())) == 4096
    assert 0 <= samples.min() < samples.max() < 10**9
    assert epochs.max() == 0
    order.batch(order.epoch_end(1))  # far on, in the next epoch
    kept = sum(window.nbytes for window in order._windows.values())
    assert kept <= 2 * 64 * 4 * 1000 * 8
    assert len(order._epochs) <= 2


def test_what_is_kept_does_not_grow_with_the_length_of_a_run() -> None:
    order = toy()
    for step in range(300):
        order.batch(step)
    assert len(order._windows) <= 2 * order.num_lanes
    assert len(order._epochs) <= 2


def test_one_sample_in_one_shard_is_an_endless_order() -> None:
    order = TrainingOrder(np.array([1]), seed=0, global_batch_size=6, num_lanes=3, window_shards=4)
    samples, epochs = order.batch(1)
    assert samples.tolist() == [0] * 6
    assert sorted(epochs.tolist()) == list(range(6, 12))


def test_lanes_that_do_not_divide_the_global_batch_are_refused() -> None:
    with pytest.raises(ValueError, match="num_lanes 5 does not divide global_batch_size 12"):
        toy(num_lanes=5)
