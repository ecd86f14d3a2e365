"""What becomes of what nodes say of themselves."""

import copy
from typing import Any

import pytest

from configs.schema import Doctor
from trainer.doctor.gpu_facts import parse, visible
from trainer.doctor.judgement import judge
from trainer.doctor.line import Line
from trainer.doctor.link_floors import ETHERNET, INFINIBAND, NVLINK, PCIE, floors, slow_nodes
from trainer.doctor.links import midpoint_skew_s, rounds
from trainer.doctor.roll_call import silent

SMI = """\
0, GPU-aaa, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 81079, 0
1, GPU-bbb, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 81079, [N/A]
"""
NODE: dict[str, Any] = {
    "versions": {"python": "3.12.1", "torch": "2.15.0", "CUDA": "13.2", "NCCL": "2.29.3", "driver": "580.65.06"},
    "backend": "nccl",
    "gpus": [
        {"index": "0", "name": "NVIDIA H100", "total_mib": 81559, "free_mib": 81079, "ecc": 0},
        {"index": "1", "name": "NVIDIA H100", "total_mib": 81559, "free_mib": 81079, "ecc": 0},
    ],
    "nvlink": True,
    "infiniband": True,
    "limits": {"open files": 65536, "locked memory": None},
    "shm": {"path": "/dev/shm", "free": 64 * 10**9},
    "run_dir": {"path": "/runs/b0", "free": 10**12, "bytes_per_s": 5e8},
    "cache": {"path": "/scratch", "free": 10**12, "bytes_per_s": 2e9},
    "shards": {"bytes_per_s": 9e8, "sample_bytes": 110_000.0, "read_shards": 8},
    "needs": {"room": 2 * 10**9, "shm": 10**9, "images_per_s": 5000.0, "rests_on": "measured in this run before"},
}
LINKS: dict[str, Any] = {
    "ranks": 6,
    "latency_ms": 0.1,
    "bandwidth": 30e9,
    "inside": [200e9, 200e9, 200e9],
    "pairs": [(0, 1, 20e9), (1, 2, 20e9), (2, 0, 20e9)],
    "clock_skews_s": [0.0, 0.01, -0.02],
}


def three() -> list[dict[str, Any]]:
    return [{"host": host, **copy.deepcopy(NODE)} for host in ("a", "b", "c")]


def judged(nodes: list[dict[str, Any]], links: dict[str, Any] | None = LINKS, **settings: Any) -> list[Line]:
    return judge(nodes, links, settings=Doctor(**settings), gpus=2)


def bad(lines: list[Line]) -> list[tuple[str, str, str]]:
    assert all(line.advice for line in lines if line.status in ("warn", "fail"))
    return [(line.status, line.check, line.node) for line in lines if line.status in ("warn", "fail")]


def test_nodes_that_are_alike_and_fast_are_a_line_for_each_check() -> None:
    lines = judged(three())

    assert bad(lines) == []
    assert {line.node for line in lines} == {"all"}
    assert len({line.check for line in lines}) == len(lines) == 21
    worst = {line.check: line.measured for line in lines}
    assert worst["clock"] == "0.020 s behind (c)"
    assert worst["all-reduce bandwidth"] == "30 GB/s"
    expected = {line.check: line.expected for line in lines}
    assert expected["shard reading"] == "550 MB/s: 5,000 images/s (measured in this run before) of 110 kB"
    assert expected["torch version"] == "2.15.0, as on 3 of 3 nodes"


CHANGES = [
    (("versions", "driver"), "570.1", "driver version"),
    (("versions", "torch"), "2.14.0", "torch version"),
    (("gpus", 1, "free_mib"), 60000, "GPU memory free"),
    (("gpus", 1, "ecc"), 3, "uncorrected ECC errors"),
    (("gpus",), [], "GPUs"),
    (("limits", "open files"), 256, "ulimit -n"),
    (("limits", "locked memory"), 8 << 20, "ulimit -l"),
    (("shm", "free"), 64 << 20, "/dev/shm"),
    (("run_dir", "free"), 10**9, "run directory"),
    (("run_dir", "bytes_per_s"), 5e6, "run directory, writing"),
    (("run_dir",), {"path": "/runs/b0", "error": "Read-only file system"}, "run directory"),
    (("cache", "bytes_per_s"), 5e6, "shard cache, writing"),
    (("shards",), {"error": "s3://b/1.tar: no answer", "passing": True, "made_later": False}, "shard source"),
    (("shards", "bytes_per_s"), 5e8, "shard reading"),
]


@pytest.mark.parametrize(("path", "value", "check"), CHANGES)
def test_the_node_with_a_fault_is_named_and_no_other(path: tuple[Any, ...], value: object, check: str) -> None:
    nodes = three()
    place: Any = nodes[1]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value

    assert bad(judged(nodes)) == [("fail", check, "b")]


def test_only_a_server_that_is_away_is_worth_another_try() -> None:
    nodes = three()
    nodes[2]["shards"] = {"error": "no answer", "passing": True, "made_later": False}
    nodes[1]["limits"]["open files"] = 10

    assert {line.node: line.passing for line in judged(nodes) if line.status == "fail"} == {"b": False, "c": True}


def test_a_clock_is_held_to_the_first_node_s() -> None:
    links = {**LINKS, "clock_skews_s": [0.0, -1.5, 0.5]}

    assert bad(judged(three(), links)) == [("fail", "clock", "b")]
    assert bad(judged(three(), links, max_clock_skew_s=2.0)) == []


def test_a_slow_all_reduce_names_the_node_that_is_slow_with_both_neighbours() -> None:
    links = {**LINKS, "bandwidth": 1e9, "pairs": [(0, 1, 1e9), (1, 2, 1.1e9), (2, 0, 20e9)]}
    lines = judged(three(), links)

    assert bad(lines) == [("fail", "all-reduce bandwidth", "all"), ("fail", "bandwidth to neighbours", "b")]
    assert next(line.advice for line in lines if line.status == "fail") == "see which node is slow: b"


def test_a_slow_link_between_two_good_nodes_blames_neither() -> None:
    links = {**LINKS, "pairs": [(0, 1, 1e9), (1, 2, 20e9), (2, 0, 20e9)]}

    assert bad(judged(three(), links)) == [("warn", "bandwidth to neighbours", "a and b")]


def test_a_node_whose_gpus_are_joined_badly_is_named() -> None:
    links = {**LINKS, "inside": [200e9, 200e9, 20e9]}

    assert bad(judged(three(), links)) == [("fail", "bandwidth inside the node", "c")]


def test_latency_and_bandwidth_are_held_to_settings() -> None:
    lines = judged(three(), min_bandwidth_gb_per_s=31.0, max_latency_ms=0.05)

    assert ("fail", "all-reduce latency", "all") in bad(lines)
    assert ("fail", "all-reduce bandwidth", "all") in bad(lines)


def test_the_floor_goes_by_what_joins_ranks() -> None:
    node = {"backend": "nccl", "infiniband": True, "nvlink": True}
    plain = {**node, "infiniband": False, "nvlink": False}

    assert floors([node, node], Doctor()) == (INFINIBAND, NVLINK)
    assert floors([node, plain], Doctor()) == (ETHERNET, PCIE)
    assert floors([{**node, "backend": "gloo"}], Doctor())[0].bandwidth < ETHERNET.bandwidth


def test_what_is_not_known_is_not_judged() -> None:
    nodes = three()[:1]
    nodes[0]["needs"]["images_per_s"] = None
    nodes[0]["gpus"][0]["ecc"] = nodes[0]["gpus"][1]["ecc"] = None
    lines = judged(nodes, None)

    assert bad(lines) == []
    assert {line.check for line in lines if line.status == "skip"} == {
        "all-reduce",
        "shard reading",
        "uncorrected ECC errors",
    }


def test_without_a_run_nothing_of_a_run_is_judged() -> None:
    node = three()[0]
    for key in ("run_dir", "cache", "shards", "needs"):
        del node[key]
    checks = {line.check for line in judge([node], None, settings=Doctor(), gpus=None)}

    assert not [check for check in checks if "directory" in check or "shard" in check or check == "GPUs"]


# Links


@pytest.mark.parametrize("nodes", range(1, 9))
def test_each_node_is_in_a_pair_with_both_neighbours_and_in_one_pair_at_a_time(nodes: int) -> None:
    found = rounds(nodes)
    pairs = [pair for each in found for pair in each]

    expected = {(i, (i + 1) % nodes) for i in range(nodes)} if nodes > 2 else {(0, 1)} if nodes == 2 else set()
    assert set(pairs) == expected
    assert len(pairs) == len(expected)
    for each in found:
        members = [node for pair in each for node in pair]
        assert len(members) == len(set(members))


def test_a_node_far_below_what_is_usual_is_slow_above_the_floor_too() -> None:
    pairs = [(0, 1, 10.0), (1, 2, 4.0), (2, 3, 4.0), (3, 0, 10.0)]

    assert slow_nodes(4, pairs, floor=1.0) == {2: (4.0, 5.0)}
    assert slow_nodes(2, [(0, 1, 4.0)], floor=5.0) == {0: (4.0, 5.0), 1: (4.0, 5.0)}
    assert slow_nodes(4, pairs, floor=0.5)[2] == (4.0, 5.0)


def test_a_clock_is_told_from_the_quickest_answer() -> None:
    # The second took 4 s on its way back.
    assert midpoint_skew_s([(100.0, 107.1, 100.2), (101.0, 108.0, 105.0)]) == pytest.approx(7.0)


# Silence


def said(host: str, *, stage: int, beat: int) -> dict[str, Any]:
    return {"host": host, "at": "all-reduces" if stage else "looking at its node", "stage": stage, "beat": beat}


def test_ranks_that_never_began_or_stopped_are_silent() -> None:
    before = [said("a", stage=1, beat=3), said("b", stage=1, beat=3), None]
    after = [said("a", stage=1, beat=7), said("b", stage=1, beat=3), None]

    assert silent(before, after) == {1: "b: stopped at all-reduces", 2: "never began"}


def test_ranks_that_are_behind_are_waited_for() -> None:
    before = [said("a", stage=1, beat=3), said("b", stage=0, beat=3)]
    after = [said("a", stage=1, beat=7), said("b", stage=0, beat=7)]

    assert silent(before, after) == {1: "b: still at looking at its node"}


# GPUs


def test_gpus_are_those_that_ranks_see() -> None:
    gpus = parse(SMI)

    assert [gpu["ecc"] for gpu in gpus] == [0, None]
    assert gpus[0] | {"driver": "580.65.06", "total_mib": 81559, "free_mib": 81079} == gpus[0]
    assert [gpu["index"] for gpu in visible(gpus, None)] == ["0", "1"]
    assert [gpu["index"] for gpu in visible(gpus, "1")] == ["1"]
    assert [gpu["index"] for gpu in visible(gpus, "GPU-a")] == ["0"]
    assert visible(gpus, "") == []
    assert parse("No devices were found\n") == []


def test_a_run_that_has_trained_so_fast_from_its_caches_is_not_ended() -> None:
    nodes = three()
    for node in nodes:
        node["needs"]["has_run"] = True
    nodes[1]["shards"]["bytes_per_s"] = 1e6

    assert bad(judged(nodes)) == [("warn", "shard reading", "b")]


def test_gpus_that_torch_alone_sees_are_there() -> None:
    """nvidia-smi is missing in images without the capability utility, and lists no parts of a GPU."""
    nodes = three()
    for node in nodes:
        node |= {"gpus": [], "devices": 2}
    nodes[2]["devices"] = 1

    assert bad(judged(nodes)) == [("fail", "GPUs", "c")]
