"""Evaluation counts each sample once, whatever the number of ranks."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.streaming.plans import EvaluationPlan, PlannedBatch

properties = settings(max_examples=150)


def batches(plan: EvaluationPlan) -> list[PlannedBatch]:
    found = []
    while (batch := plan.batch(len(found))) is not None:
        found.append(batch)
    return found


@properties
@given(samples=st.integers(1, 200), batch_size=st.integers(1, 40), world_size=st.integers(1, 40))
def test_each_sample_counts_once_and_all_ranks_take_equal_steps(samples: int, batch_size: int, world_size: int) -> None:
    plans = [
        EvaluationPlan(samples=samples, batch_size=batch_size, global_rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    ranks = [batches(plan) for plan in plans]
    counted = [
        int(sample)
        for rank in ranks
        for batch in rank
        for sample, weight in zip(batch.samples, batch.weights, strict=True)
        if weight == 1
    ]
    assert sorted(counted) == list(range(samples))
    for plan, rank in zip(plans, ranks, strict=True):
        assert len(rank) == plan.batches > 0
        assert [len(batch.samples) for batch in rank] == [len(batch.samples) for batch in ranks[0]]
        for batch in rank:
            assert 0 < len(batch.samples) <= batch_size
            assert batch.weights.dtype == np.float32
            assert set(batch.weights.tolist()) <= {0.0, 1.0}
            assert batch.samples.min() >= 0
            assert batch.samples.max() < samples  # padding is a real sample, which can be read


def test_more_ranks_than_samples_leave_some_with_padding_alone() -> None:
    ranks = [batches(EvaluationPlan(samples=5, batch_size=64, global_rank=rank, world_size=8)) for rank in range(8)]
    assert [batch.samples.tolist() for rank in ranks for batch in rank] == [[0], [1], [2], [3], [4], [4], [4], [4]]
    assert [batch.weights.tolist() for rank in ranks for batch in rank] == [[1.0]] * 5 + [[0.0]] * 3


def test_padding_is_less_than_a_sample_a_rank_and_lies_at_the_end() -> None:
    ranks = [batches(EvaluationPlan(samples=50_000, batch_size=64, global_rank=r, world_size=24)) for r in range(24)]
    weights = [np.concatenate([batch.weights for batch in rank]) for rank in ranks]
    assert sum(int((w == 0).sum()) for w in weights) == 24 * 2084 - 50_000
    assert all((np.diff(w) <= 0).all() for w in weights)
