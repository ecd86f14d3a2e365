"""Positions in the data: what a checkpoint keeps of them, and how a run goes on from one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.problems import DataError
from datamodules.indexing.index import ShardIndex
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.position import FIRST_FORMAT, Positions

SHARDS = (26, 26, 26, 26, 25)  # 129 samples in batches of 16: the first epoch ends in the ninth


def index_of(*shard_samples: int) -> ShardIndex:
    shards = tuple(Path(f"{number}.tar") for number in range(len(shard_samples)))
    per_shard, per_sample = np.zeros(len(shards), dtype=np.int64), np.zeros(sum(shard_samples), dtype=np.int64)
    return ShardIndex(shards, per_shard, per_shard, np.array(shard_samples), per_sample, per_sample, per_sample)


def positions(*shard_samples: int, seed: int = 5, global_batch_size: int = 16, num_lanes: int = 4) -> Positions:
    index = index_of(*(shard_samples or SHARDS))
    order = TrainingOrder(
        index.shard_samples,
        seed=seed,
        global_batch_size=global_batch_size,
        num_lanes=num_lanes,
        window_shards=2,
    )
    return Positions(order, index, index_of(37))


def test_a_position_follows_from_the_step_alone() -> None:
    here = positions()
    assert here.after(8) == {
        "epoch": 0,
        "samples_consumed": 128,
        "samples_seen": 128,
        "batches_passed_over": 0,
        "seed": 5,
        "index_hash": here.train_index.digest,
        "order_version": 1,
        "val_index_hash": here.val_index.digest,
        "samples_per_epoch": 129,
        "global_batch_size": 16,
        "num_lanes": 4,
        "shuffle_window_shards": 2,
        "repeats": 1,
    }
    assert here.after(9) == here.after(8) | {"epoch": 1, "samples_consumed": 144, "samples_seen": 144}
    there, differing = here.going_on(here.after(9), 9)
    assert differing == []
    assert there.after(9) == here.after(9)


@pytest.mark.parametrize(
    ("change", "listed"),
    [
        ({"seed": 6}, "seed was 6, is 5"),
        ({"order_version": 0}, "order_version was 0, is 1"),
        ({"samples_consumed": 64, "epoch": 3}, "epoch was 3, is 1, samples_consumed was 64, is 144"),
        ({"index_hash": "abc"}, "index_hash was abc, is "),
    ],
)
def test_a_position_of_other_data_is_refused(change: dict[str, Any], listed: str) -> None:
    here = positions()
    with pytest.raises(DataError, match=f"the checkpoint's data position does not fit this run: {listed}"):
        here.going_on(here.after(9) | change, 9)


def test_a_position_without_a_part_is_refused() -> None:
    saved = positions().after(9)
    del saved["index_hash"]
    with pytest.raises(DataError, match="index_hash was None"):
        positions().going_on(saved, 9)


def test_a_position_of_another_batch_size_is_refused() -> None:
    saved = positions(global_batch_size=32).after(4)
    with pytest.raises(DataError, match="samples_consumed was 128, is 64"):
        positions().going_on(saved, 4)


def test_a_position_goes_on_past_the_batches_that_it_passed_over() -> None:
    saved = positions().after(6) | {"batches_passed_over": 2, "samples_consumed": 128}
    there, _ = positions().going_on(saved, 6)
    assert there.after(6) == saved
    assert there.after(7)["epoch"] == 1  # of 9 batches
    assert there.order.epoch_end(1) == 7


def test_a_position_from_before_batches_were_passed_over_fits() -> None:
    saved = positions().after(6)
    del saved["batches_passed_over"]
    there, _ = positions().going_on(saved, 6)
    assert there.order.passed_over == 0


def test_the_next_batch_comes_before_what_a_position_says() -> None:
    here = positions()
    here = replace(here, order=replace(here.order, passed_over=10))
    saved = positions().after(6) | {"batches_passed_over": 2, "samples_consumed": 128, "epoch": 0}
    there, _ = here.going_on(saved, 6, next_batch=10)
    assert there.order.passed_over == 4


def test_lanes_and_window_belong_to_the_position() -> None:
    saved = positions(num_lanes=8).after(9)
    with pytest.raises(DataError, match=r"num_lanes was 8, is 4; resume\.allow_changes=true"):
        positions().going_on(saved, 9)
    with pytest.raises(DataError, match="shuffle_window_shards was 3, is 2"):
        positions().going_on(positions().after(9) | {"shuffle_window_shards": 3}, 9)


def test_a_position_of_the_first_format_lacks_parts_and_fits() -> None:
    here = positions()
    old = {key: value for key, value in here.after(9).items() if key in FIRST_FORMAT}
    assert len(old) == 5
    there, differing = here.going_on(old, 9)
    assert differing == []
    assert there.after(9) == here.after(9)


@pytest.mark.parametrize(
    ("size", "step", "next_batch", "again"), [(32, 4, 8, 0), (8, 5, 2, 8), (48, 3, 9, 0), (16, 7, 7, 0)]
)
def test_a_position_is_carried_over_to_another_batch_size(size: int, step: int, next_batch: int, again: int) -> None:
    """Steps keep their numbers. Rounded down to whole batches of 16: samples come again rather than never."""
    saved = positions(global_batch_size=size).after(step)

    there, differing = positions().going_on(saved, step, allow_changes=True)
    assert (f"global_batch_size was {size}, is 16" in differing) == (size != 16)
    assert step + there.order.passed_over == next_batch
    assert size * step - int(there.after(step)["samples_consumed"]) == again
    assert [there.samples_seen(step + steps) for steps in (0, 1)] == [size * step, size * step + 16]
    ours, theirs = there.order.batch(step), positions().order.batch(next_batch)
    assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))
    assert there.order.epoch_end(1) == step - next_batch + 9

    later, differing = positions().going_on(there.after(step + 1), step + 1)
    assert differing == []
    assert later.after(step + 1) == there.after(step + 1)


def test_a_position_is_carried_over_to_other_shards_by_its_share_of_the_epoch() -> None:
    saved = positions().after(20)  # 320 samples: 62 of the third epoch of 129

    there, differing = positions(100).going_on(saved, 20, allow_changes=True)
    assert any(note.startswith("index_hash was") for note in differing)
    position = there.after(20)
    assert position["epoch"] == 2
    assert position["samples_consumed"] == (2 * 100 + 62 * 100 // 129) // 16 * 16
    assert position["samples_seen"] == 320
