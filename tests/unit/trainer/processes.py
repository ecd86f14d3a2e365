"""Functions run in several real processes, as a launcher would start them."""

import json
import os
import subprocess
import sys

from tests.ports import free_port

TIMEOUT_S = 180


def run_ranks(code: str, *, world_size: int, timeout_s: float = TIMEOUT_S) -> list[object]:
    """Run a program on so many ranks; each prints a line of JSON as its last, which is returned by rank."""
    code += "\nimport os, sys; sys.stdout.flush(); os._exit(0)"  # as the trainer ends: no teardown of process groups
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)},
        )
        for rank in range(world_size)
    ]
    try:
        ended = [rank.communicate(timeout=timeout_s) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0] * world_size, ended
    return [json.loads(output.strip().splitlines()[-1]) for output, _ in ended]
