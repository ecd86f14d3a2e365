"""When a failed run is started again, and when that would be of no use."""

from typing import Any

import pytest

from configs.rank_records import HANG, PEER_LOST
from launch.restarts import LONGEST_BACKOFF_S, Restarts, failed_alike


def error(rank: int, **changes: object) -> dict[str, Any]:
    known = {"rank": rank, "step": 7, "error": "ValueError", "reason": "ValueError: 12 at 0x7f1a"}
    return known | changes


def test_restarts_are_counted_from_the_last_progress() -> None:
    restarts = Restarts(limit=2, backoff_s=8)
    waits = [restarts.next_backoff_s(progressed=progressed) for progressed in (True, False, True, False, False)]

    assert [wait is None for wait in waits] == [False, False, False, False, True]


def test_by_default_nothing_is_started_again() -> None:
    assert Restarts(limit=0, backoff_s=8).next_backoff_s(progressed=True) is None


def test_the_wait_doubles_up_to_a_limit_and_differs_between_runs() -> None:
    for _ in range(50):
        restarts = Restarts(limit=40, backoff_s=8)
        waits = [restarts.next_backoff_s(progressed=False) or 0.0 for _ in range(40)]
        assert all(4 * 2**count <= wait <= 12 * 2**count for count, wait in enumerate(waits[:5]))
        assert max(waits) <= 1.5 * LONGEST_BACKOFF_S
    assert len(set(waits[10:])) == 30


def test_a_run_may_be_started_again_for_weeks() -> None:
    restarts = Restarts(limit=2000, backoff_s=8)
    assert all(restarts.next_backoff_s(progressed=False) is not None for _ in range(2000))


def test_the_same_error_of_the_same_rank_at_the_same_step_is_alike() -> None:
    assert failed_alike([error(1)], [error(1, reason="ValueError: 13 at 0x55")]) == error(1)
    assert failed_alike([error(0), error(1)], [error(1)]) == error(1)  # all ranks failed, and another said so first


def test_another_rank_step_type_or_message_is_not() -> None:
    others: list[dict[str, object]] = [{"step": 8}, {"error": "KeyError"}, {"reason": "ValueError: of another kind"}]
    assert not any(failed_alike([error(1)], [error(1, **other)]) for other in others)
    assert failed_alike([error(1)], [error(0)]) is None
    assert failed_alike([error(1)], []) is None
    assert failed_alike([], [error(1)]) is None


def test_what_lies_outside_of_the_run_may_come_again() -> None:
    for kind in (None, PEER_LOST, "UnreachableError"):
        outside = error(1, error=kind, reason="killed by SIGKILL")
        assert failed_alike([outside], [outside]) is None
        # What it causes on another rank may come again too.
        assert failed_alike([outside, error(0)], [outside, error(0)]) is None


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (HANG, "no answer within doctor.timeout_s = 300 s: rank 8 (node 1): never began"),
        (HANG, "no micro-batch for 600 s"),
        ("OSError", "OSError: [Errno 28] No space left on device: 'runs/a/environment.json'"),
        ("OSError", "OSError: [Errno 30] Read-only file system"),
        ("ConnectionRefusedError", "ConnectionRefusedError: [Errno 111] Connection refused"),
    ],
)
def test_what_waits_for_a_node_a_disk_or_a_server_may_come_again(kind: str, reason: str) -> None:
    outside = error(0, error=kind, reason=reason, step=None)
    assert failed_alike([outside], [outside]) is None
    missing = error(0, error="FileNotFoundError", reason="FileNotFoundError: [Errno 2] No such file", step=None)
    assert failed_alike([missing], [missing]) == missing
