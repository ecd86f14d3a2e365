"""What joins ranks and nodes: latency and bandwidth of all-reduces, bandwidth between two nodes, clocks.

Bandwidth is bus bandwidth as nccl-tests defines it (doc/PERFORMANCE.md): 2 (n - 1) / n bytes for each byte of the
message, which is what a link carries in a ring. So it does not fall with the number of ranks.
"""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import torch
from torch import distributed

from trainer.processes import Processes

FIRST_BYTES, MOST_BYTES = {"gloo": 1 << 20, "nccl": 1 << 23}, {"gloo": 1 << 25, "nccl": 1 << 29}
ENOUGH_S = 0.1
"""A message that takes so long is measured well enough."""
TIMES, SMALL_TIMES, PINGS = 3, 50, 8


class Links:
    """Measures within the default process group. Each method is called on all ranks, in the same order."""

    def __init__(self, processes: Processes, backend: str) -> None:
        self._processes = processes
        self._backend = backend
        self._device = torch.device("cuda", processes.local_rank) if backend == "nccl" else torch.device("cpu")
        self._size = FIRST_BYTES[backend]

    @property
    def _node(self) -> int:
        return self._processes.global_rank // self._processes.local_world_size

    @property
    def _leads(self) -> bool:
        """Whether this is the first rank of its node."""
        return self._processes.local_rank == 0

    def latency_ms(self) -> float:
        """Median time of an all-reduce of one number over all ranks."""
        number = torch.ones(1, device=self._device)
        times = [self._timed(lambda: distributed.all_reduce(number)) for _ in range(SMALL_TIMES)]
        return 1000 * median(times[SMALL_TIMES // 5 :])  # the first ones connect

    def bandwidth(self, group: distributed.ProcessGroup | None = None) -> float:
        """Bus bandwidth in bytes per second of an all-reduce over a group's ranks, by messages that grow."""
        ranks = distributed.get_world_size(group)
        size = FIRST_BYTES[self._backend]
        while True:
            message = torch.ones(size // 4, device=self._device)
            self._timed(lambda message=message: distributed.all_reduce(message, group=group))  # type: ignore[misc]
            took = min(
                self._timed(lambda message=message: distributed.all_reduce(message, group=group))  # type: ignore[misc]
                for _ in range(TIMES)
            )
            slowest = torch.tensor([took], dtype=torch.float64)
            distributed.all_reduce(slowest, distributed.ReduceOp.MAX, group=group)
            if float(slowest) > ENOUGH_S or size >= MOST_BYTES[self._backend]:
                self._size = size
                return 2 * (ranks - 1) / ranks * size / float(slowest)
            size *= 2

    def bandwidth_inside(self) -> float:
        """The same over this node's ranks alone."""
        kept = self._size
        group, _ = distributed.new_subgroups(group_size=self._processes.local_world_size)
        try:
            return self.bandwidth(group)
        finally:
            self._size = kept  # all nodes go on with the same

    def bandwidth_to_neighbours(self) -> list[tuple[int, int, float]]:
        """Bytes per second each way between the first ranks of two nodes, around the ring of nodes.

        Each node has two neighbours: one that is slow with both is slow itself. A node is in one pair at a time.

        Returns:
            On a node's first rank, both nodes and the bandwidth of each pair that it is in.
        """
        nodes, found = self._processes.num_nodes, []
        for pairs in rounds(nodes):
            distributed.all_reduce(torch.zeros(1))  # all are at this round
            for pair in pairs:
                if self._leads and self._node in pair:
                    other = pair[0] + pair[1] - self._node
                    found.append((*pair, self._exchange(other * self._processes.local_world_size)))
        return found

    def clock_skews_s(self) -> list[float]:
        """On rank 0, how far ahead of its own the clock of each node is."""
        skews = [0.0]
        for node in range(1, self._processes.num_nodes):
            peer = node * self._processes.local_world_size
            if self._processes.global_rank == 0:
                skews.append(midpoint_skew_s([_ping(peer) for _ in range(PINGS)]))
            elif self._processes.global_rank == peer:
                for _ in range(PINGS):
                    _pong()
        return skews

    def _exchange(self, peer: int) -> float:
        sent, received = (torch.ones(self._size // 4, device=self._device) for _ in range(2))

        def exchange() -> None:
            both = [
                distributed.P2POp(distributed.isend, sent, peer),
                distributed.P2POp(distributed.irecv, received, peer),
            ]
            for work in distributed.batch_isend_irecv(both):
                work.wait()

        self._timed(exchange)
        return self._size / min(self._timed(exchange) for _ in range(TIMES))

    def _timed(self, work: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def rounds(nodes: int) -> list[list[tuple[int, int]]]:
    """Pairs of neighbours around a ring, in rounds in which each node is in one pair at most."""
    if nodes < 3:
        return [[(0, 1)]] if nodes == 2 else []
    ring = [(node, (node + 1) % nodes) for node in range(nodes)]
    last = [ring.pop()] if nodes % 2 else []
    return [pairs for pairs in (ring[0::2], ring[1::2], last) if pairs]


def midpoint_skew_s(pings: Sequence[tuple[float, float, float]]) -> float:
    """How far another clock is ahead, by the quickest of some pings: it was read half-way between here and back.

    Args:
        pings: When each left by the clock here, the time there, and when it was back here, in seconds.
    """
    left, there, back = min(pings, key=lambda ping: ping[2] - ping[0])
    return there - (left + back) / 2


def _ping(peer: int) -> tuple[float, float, float]:
    answer = torch.zeros(1, dtype=torch.float64)
    left = time.time()
    distributed.send(answer, peer)
    distributed.recv(answer, peer)
    return left, float(answer), time.time()


def _pong() -> None:
    question = torch.zeros(1, dtype=torch.float64)
    distributed.recv(question, 0)
    distributed.send(torch.tensor([time.time()], dtype=torch.float64), 0)
