"""The arithmetic of batches, for any sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.batches import BatchLayout, epoch_end_step, largest_world_size

sizes = st.integers(1, 12)


@given(accumulate=sizes, micro=sizes, world_size=sizes)
def test_the_micro_batches_of_all_ranks_are_the_global_batch_once(accumulate: int, micro: int, world_size: int) -> None:
    layout = BatchLayout(
        global_batch_size=accumulate * micro * world_size, micro_batch_size=micro, world_size=world_size
    )

    taken = [
        position
        for rank in range(world_size)
        for batch_idx in range(layout.accumulate_grad_batches)
        for position in range(*layout.slots(layout.micro_batch(global_rank=rank, batch_idx=batch_idx)))
    ]

    assert layout.accumulate_grad_batches == accumulate
    assert taken == list(range(layout.global_batch_size)), "in order, so that each rank has a contiguous part"


@given(micro_batches=st.integers(1, 48), micro=sizes)
def test_every_world_size_deals_the_same_micro_batches(micro_batches: int, micro: int) -> None:
    layouts = [
        BatchLayout(global_batch_size=micro_batches * micro, micro_batch_size=micro, world_size=world_size)
        for world_size in range(1, micro_batches + 1)
        if micro_batches % world_size == 0
    ]

    slots = [[layout.slots(index) for index in range(layout.micro_batches)] for layout in layouts]

    assert all(other == slots[0] for other in slots)


@given(accumulate=sizes, world_size=sizes, steps=st.integers(0, 1000))
def test_batch_numbers_go_on_over_the_steps_of_an_epoch(accumulate: int, world_size: int, steps: int) -> None:
    layout = BatchLayout(global_batch_size=accumulate * world_size, micro_batch_size=1, world_size=world_size)

    for batch_idx in range(accumulate):
        at_first = layout.micro_batch(global_rank=world_size - 1, batch_idx=batch_idx)
        assert layout.micro_batch(global_rank=world_size - 1, batch_idx=steps * accumulate + batch_idx) == at_first


@pytest.mark.parametrize(("micro", "world_size"), [(32, 3), (30, 1), (512, 1)])
def test_a_global_batch_that_cannot_be_dealt_is_an_error(micro: int, world_size: int) -> None:
    with pytest.raises(ValueError, match=f"256 cannot be dealt to {world_size} ranks in micro-batches of {micro}"):
        BatchLayout(global_batch_size=256, micro_batch_size=micro, world_size=world_size)


@given(micro_batches=st.integers(1, 64), micro=sizes, available=st.integers(0, 80))
def test_the_largest_world_size_is_the_largest_that_divides(micro_batches: int, micro: int, available: int) -> None:
    largest = largest_world_size(global_batch_size=micro_batches * micro, micro_batch_size=micro, available=available)

    assert 1 <= largest <= max(available, 1)
    assert micro_batches % largest == 0
    assert not any(micro_batches % more == 0 for more in range(largest + 1, available + 1))


@pytest.mark.parametrize(
    ("global_batch_size", "micro_batch_size", "available", "expected"),
    [
        (256, 64, 8, 4),
        (256, 64, 3, 2),
        (192, 64, 8, 3),
        (192, 64, 2, 1),
        (64, 64, 8, 1),
        (256, 64, 0, 1),
        (448, 64, 6, 1),
    ],
)
def test_the_largest_world_size_of_examples(
    global_batch_size: int, micro_batch_size: int, available: int, expected: int
) -> None:
    sizes = {"global_batch_size": global_batch_size, "micro_batch_size": micro_batch_size}

    assert largest_world_size(**sizes, available=available) == expected


@given(epochs=st.integers(1, 400), samples=st.integers(1, 2_000_000), global_batch_size=st.integers(1, 8192))
def test_the_steps_of_whole_epochs_are_the_fewest_that_see_them(
    epochs: int, samples: int, global_batch_size: int
) -> None:
    steps = epoch_end_step(epochs, samples=samples, global_batch_size=global_batch_size)

    assert (steps - 1) * global_batch_size < epochs * samples <= steps * global_batch_size
