"""Training loops that take turns, a few steps each, in processes of their own: what disturbs one disturbs the others.

A loop pulls batches from `Batches`, which holds it between turns: while one runs, the others wait for a line on a pipe.
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import torch

from datamodules.streaming.loaders import Batch

REPLY = "EFFNET_BENCHMARK_REPLY"
"""Environment variable: the file descriptor of a loop's answers."""
DIFFERENT = 4
"""Batches that come again and again."""


class Shape(NamedTuple):
    """What a loop trains on: images of ``size`` pixels, ``batch`` at once."""

    batch: int
    size: int


def batches(shape: Shape, *, pin: bool) -> list[Batch]:
    """A few random batches, in memory as the loaders leave them."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(DIFFERENT):
        pixels = torch.randint(256, (shape.batch, shape.size, shape.size, 3), dtype=torch.uint8, generator=generator)
        targets = torch.randint(1000, (shape.batch,), generator=generator)
        numbers, weights = torch.arange(shape.batch), torch.ones(shape.batch)
        batch = Batch(pixels.permute(0, 3, 1, 2), targets, numbers, weights, torch.zeros(shape.batch, dtype=torch.bool))
        made.append(Batch(*(column.pin_memory() for column in batch)) if pin else batch)
    return made


class Batches:
    """Batches for ever, as many a turn as the parent asks for; outside a benchmark's turns, without a stop."""

    def __init__(self, shape: Shape, *, cuda: bool) -> None:
        self._batches = batches(shape, pin=cuda)
        self._cuda = cuda

    def __len__(self) -> int:
        return 10**6

    def __iter__(self) -> Iterator[Batch]:
        if REPLY not in os.environ:
            while True:
                yield from self._batches
        with os.fdopen(int(os.environ[REPLY]), "w") as replies:
            for line in sys.stdin:
                self._wait()
                begin = time.perf_counter()
                for number in range(int(line)):
                    yield self._batches[number % DIFFERENT]
                self._wait()
                replies.write(f"{time.perf_counter() - begin}\n")
                replies.flush()
        os._exit(0)  # the benchmark has ended

    def _wait(self) -> None:
        if self._cuda:
            torch.cuda.synchronize()


class Loop:
    """A process with a loop that takes its steps when it is told to, or several ranks that do so together."""

    def __init__(self, module: str, arguments: Sequence[str], *, cores: Sequence[Sequence[int]] | None = None) -> None:
        """Start it, on each of ``cores`` a rank."""
        self._ranks: list[subprocess.Popen[str]] = []
        reading, writing = os.pipe()
        self._replies: Any = os.fdopen(reading)
        port = _free_port()
        for rank, of_rank in enumerate(cores or [sorted(os.sched_getaffinity(0))]):
            world = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": len(cores or []),
                "LOCAL_WORLD_SIZE": len(cores or []),
            }
            world |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            environment = dict(os.environ) | {"OMP_NUM_THREADS": str(len(of_rank))}
            environment |= {name: str(value) for name, value in world.items()} if cores and len(cores) > 1 else {}
            environment[REPLY] = str(writing)
            # Inherited from this process, which is the only thread that starts processes here.
            before = os.sched_getaffinity(0)
            os.sched_setaffinity(0, of_rank)
            self._ranks.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *arguments],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.DEVNULL,
                    stderr=sys.stderr if "EFFNET_BENCHMARK_SHOW" in os.environ else subprocess.DEVNULL,
                    pass_fds=[writing],
                    env=environment,
                    text=True,
                )
            )
            os.sched_setaffinity(0, before)
        os.close(writing)

    def seconds(self, steps: int) -> float:
        """Run so many steps. Afterwards every rank rests; as slow as the slowest.

        Raises:
            RuntimeError: If a process has ended.
        """
        answers = []
        with contextlib.suppress(BrokenPipeError):
            for rank in self._ranks:
                assert rank.stdin is not None
                rank.stdin.write(f"{steps}\n")
                rank.stdin.flush()
            answers = [self._replies.readline() for _ in self._ranks]
        if not all(answers) or not answers:
            raise RuntimeError(f"{self._ranks[0].args} has ended; EFFNET_BENCHMARK_SHOW=1 shows what it prints")
        return max(map(float, answers))

    def close(self) -> None:
        """End it."""
        for rank in self._ranks:
            rank.kill()
            rank.communicate()
        self._replies.close()


class Unconnected:
    """Loops that take their steps at the same time and know nothing of each other; as slow as the slowest."""

    def __init__(self, loops: Sequence[Loop]) -> None:
        self._loops = loops

    def seconds(self, steps: int) -> float:
        """Run so many steps of each."""
        with ThreadPoolExecutor(len(self._loops)) as threads:
            return max(threads.map(lambda loop: loop.seconds(steps), self._loops))

    def close(self) -> None:
        """End them."""
        for loop in self._loops:
            loop.close()


def take_steps(loops: Mapping[str, Loop | Unconnected], *, rounds: int, steps: int) -> dict[str, list[float]]:
    """Seconds a step of each loop in each round. They are warm then: each has run twice as many steps before.

    Args:
        loops: By name.
        rounds: Turns of each, in an order that is turned round each time.
        steps: Optimizer steps of a turn.
    """
    found: dict[str, list[float]] = {name: [] for name in loops}
    for loop in loops.values():
        loop.seconds(2 * steps)
    for turn in range(rounds):
        print(f"round {turn + 1}/{rounds}: {', '.join(loops)}", file=sys.stderr, flush=True)
        for name in list(loops)[:: 1 if turn % 2 else -1]:
            found[name].append(loops[name].seconds(steps) / steps)
    return found


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
