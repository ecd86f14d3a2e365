"""What all-reduces are held to where no setting says so, and which node is slow by the pairs that it is in."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from configs.schema import Doctor

SHARE_OF_MEDIAN = 0.5
"""A node that is slower with both its neighbours than this share of what is usual is slow, whatever the floor."""


@dataclass(frozen=True, kw_only=True)
class Floors:
    """What a group of ranks is held to.

    Attributes:
        bandwidth: Least bus bandwidth in bytes per second.
        latency_ms: Longest time of an all-reduce of one number.
        rests_on: What the two rest on.
    """

    bandwidth: float
    latency_ms: float
    rests_on: str


GLOO = Floors(bandwidth=0.05e9, latency_ms=50.0, rests_on="gloo")
NVLINK = Floors(bandwidth=50e9, latency_ms=0.5, rests_on="NVLink")
PCIE = Floors(bandwidth=4e9, latency_ms=0.5, rests_on="PCIe")
INFINIBAND = Floors(bandwidth=8e9, latency_ms=2.0, rests_on="InfiniBand")
ETHERNET = Floors(bandwidth=0.8e9, latency_ms=5.0, rests_on="Ethernet")
"""Well below what each gives: NVLink 3 and 4 some 200 to 450 GB/s, PCIe 4 some 20, one HDR or NDR link 20 to 45,
Ethernet of 10 Gbit/s 1.1. Gloo on the CPU is held to half a gigabit link."""


def floors(nodes: Sequence[Mapping[str, Any]], settings: Doctor) -> tuple[Floors, Floors]:
    """What ranks of several nodes are held to, and those inside a node."""
    if any(node["backend"] == "gloo" for node in nodes):
        between = inside = GLOO
    else:
        between = INFINIBAND if all(node["infiniband"] for node in nodes) else ETHERNET
        inside = NVLINK if all(node["nvlink"] for node in nodes) else PCIE
    return _with(between, settings), _with(inside, settings)


def _with(floor: Floors, settings: Doctor) -> Floors:
    bandwidth, latency_ms = settings.min_bandwidth_gb_per_s, settings.max_latency_ms
    if bandwidth is None and latency_ms is None:
        return floor
    return Floors(
        bandwidth=floor.bandwidth if bandwidth is None else bandwidth * 1e9,
        latency_ms=floor.latency_ms if latency_ms is None else latency_ms,
        rests_on="doctor.*" if None not in (bandwidth, latency_ms) else f"{floor.rests_on} and doctor.*",
    )


def slow_nodes(nodes: int, pairs: Sequence[tuple[int, int, float]], *, floor: float) -> dict[int, tuple[float, float]]:
    """Nodes whose better pair is below the floor, or far below what is usual: what it has, and what it is held to.

    Args:
        nodes: Number of nodes.
        pairs: Two nodes, and the bytes per second between them.
        floor: In bytes per second.
    """
    best = {node: max((rate for *pair, rate in pairs if node in pair), default=None) for node in range(nodes)}
    known = {node: rate for node, rate in best.items() if rate is not None}
    usual = SHARE_OF_MEDIAN * median(known.values()) if len(known) > 2 else 0.0
    expected = max(floor, usual)
    return {node: (rate, expected) for node, rate in known.items() if rate < expected}
