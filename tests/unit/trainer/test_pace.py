"""At which steps the ranks agree, on a clock that the test sets."""

from itertools import pairwise

import pytest

from tests.unit.trainer.processes import run_ranks
from trainer.pace import MOST_STEPS, Pace, steps_between


@pytest.mark.parametrize(
    ("step_s", "steps"), [(0.0, 1), (2.0, 1), (0.4, 1), (0.3, 2), (0.1, 4), (0.051, 8), (0.001, MOST_STEPS)]
)
def test_the_shorter_the_steps_the_fewer_agreements(step_s: float, steps: int) -> None:
    assert steps_between(step_s) == steps


def test_a_number_of_steps_holds_however_long_they_take() -> None:
    pace = Pace(3)
    pace.agreed(3, slowest_step_s=100.0)
    assert [step for step in range(1, 10) if pace.asks(step)] == [3, 6, 9]


def test_until_the_slowest_is_known_each_step_asks() -> None:
    pace = Pace(None)
    asked = []
    for step in range(1, 12):
        if pace.asks(step):
            asked.append(step)
            pace.agreed(step, slowest_step_s=0.0 if step < 3 else 0.11)
    assert asked == [1, 2, 3, 7, 11]


def test_seconds_are_of_a_step_and_none_is_known_at_first_or_within_a_validation() -> None:
    now = [100.0]
    pace = Pace(None, clock=lambda: now[0])
    found = []
    for step, later in [(5, 0.0), (6, 0.5), (10, 2.0), (10, 7.0)]:
        now[0] += later
        found.append(pace.step_s(step))
    assert found == [0.0, 0.5, 0.5, 0.0]


def test_all_ranks_ask_at_the_same_steps_though_one_is_slow() -> None:
    code = """
import json, time
from datetime import timedelta
import torch
from torch import distributed
from trainer.agreement import Agreement, Votes
from trainer.pace import Pace

distributed.init_process_group("gloo")
rank = distributed.get_rank()
agreement, pace, asked = Agreement(world_size=2, timeout=timedelta(seconds=60)), Pace(None), []
for step in range(1, 30):
    time.sleep(0.01 + 0.05 * rank)
    distributed.barrier()
    if pace.asks(step):
        asked.append(step)
        agreement.ask(Votes(), step_s=pace.step_s(step) if rank else min(pace.step_s(step), 0.001))
        pace.agreed(step, slowest_step_s=agreement.slowest_step_s)
print(json.dumps(asked))
"""
    first, second = run_ranks(code, world_size=2)
    assert first == second
    between = [after - before for before, after in pairwise(first)]
    assert max(between) <= 7  # 0.4 seconds of the slow rank, not the 8 of the one that believes itself fast
