"""Real processes over gloo."""

from tests.unit.trainer.processes import run_ranks
from trainer.__main__ import LOST_PEER
from trainer.agreement import Agreement, Votes

BEGIN = """
import json, os, time
from datetime import timedelta
import torch
from torch import distributed
from trainer.agreement import Agreement, Votes

torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
agreement = Agreement(world_size=distributed.get_world_size(), timeout=timedelta(seconds=60))
"""


def test_all_ranks_learn_at_the_same_call_what_one_has_seen() -> None:
    code = """
seen = {(0, 1): Votes(save=True), (2, 3): Votes(signal=True), (0, 3): Votes(stop=True), (0, 5): Votes(failed=True)}
seen[1, 6] = Votes(time=True)
found = []
for call in range(8):
    time.sleep(0.02 * (rank + 1) * (call % 3))  # out of step
    found.append([int(vote) for vote in agreement.ask(seen.get((rank, call), Votes()))])
print(json.dumps(found))
"""
    nothing = [0] * 5
    expected = [nothing, nothing, [0, 0, 1, 0, 0], nothing, [1, 1, 0, 0, 0], nothing, [0, 0, 0, 1, 0], [0, 0, 0, 0, 1]]
    assert run_ranks(BEGIN + code, world_size=3) == [expected] * 3


def test_the_first_rank_with_a_word_is_heard_by_all_even_between_votes() -> None:
    code = """
found = [agreement.first(None)]
agreement.ask(Votes(save=rank == 1))
found.append(agreement.first({1: "disk full on rank 1", 2: "on rank 2"}.get(rank)))
found.append(list(map(int, agreement.ask(Votes()))))
print(json.dumps(found))
"""
    assert run_ranks(BEGIN + code, world_size=3) == [[None, "disk full on rank 1", [0, 0, 1, 0, 0]]] * 3


def test_alone_a_rank_agrees_with_itself_at_once() -> None:
    from datetime import timedelta

    agreement = Agreement(world_size=1, timeout=timedelta(seconds=1))
    assert agreement.ask(Votes(save=True)) == Votes(save=True)
    assert agreement.ask(Votes()) == Votes()
    assert agreement.first("word") == "word"


def test_a_rank_that_hears_nothing_from_another_gives_up_and_does_not_vote_for_ever() -> None:
    code = """
agreement, told = Agreement(world_size=2, timeout=timedelta(seconds=1)), "nothing"
agreement.ask(Votes())
store = distributed.distributed_c10d._get_default_store()
if rank == 0:
    try:
        for _ in range(2):
            agreement.ask(Votes())
    except RuntimeError as error:
        told = str(error)
    store.set("given up", "")
store.wait(["given up"], timedelta(seconds=60))
print(json.dumps(told))
"""
    told, other = run_ranks(BEGIN + code, world_size=2)
    assert LOST_PEER.search(str(told)), told
    assert "imed out" in str(told)
    assert other == "nothing"
