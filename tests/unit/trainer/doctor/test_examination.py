"""Examining nodes: what comes of it on each rank, and what where one does not answer."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from configs.load import load_config
from configs.problems import UnreachableError
from configs.run import RunDirectory
from tests.ports import free_port
from tests.unit.trainer.processes import TIMEOUT_S, run_ranks
from tests.web import FaultyServer
from trainer.doctor.examination import UnfitError, preflight
from trainer.processes import Processes

ALONE = Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)
QUIET = Console(quiet=True)
EXAMINE = """
import json, os
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from trainer.doctor.examination import UnfitError, preflight
from trainer.processes import Processes

os.environ |= {{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}}  # each rank is a node
run = RunDirectory(Path({path!r}))
said = None
try:
    preflight(run.load_config(), run, attempt=0, processes=Processes.from_environment(), console=Console(quiet=True))
except UnfitError as error:
    said = str(error)
"""


@pytest.fixture
def run(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> Callable[..., RunDirectory]:
    def make(**changes: object) -> RunDirectory:
        speed = {
            "doctor__min_disk_mb_per_s": 0.1,
            "doctor__max_latency_ms": 2000,
            "doctor__min_bandwidth_gb_per_s": 0.001,
        }
        config = load_config([], toy_overrides(**{**speed, **changes})).config
        made = RunDirectory(tmp_path / "run")
        made.log_dir(0).mkdir(parents=True)
        made.freeze(config)
        return made

    return make


def test_nodes_meet_without_an_agent_and_training_can_meet_there_afterwards(run: Callable[..., RunDirectory]) -> None:
    found = run()
    then = """
from torch import distributed
import torch
distributed.init_process_group("gloo")
number = torch.ones(1)
distributed.all_reduce(number)
print(json.dumps([said, float(number)]))
"""
    ended = run_ranks(EXAMINE.format(path=str(found.path)) + then, world_size=2)

    assert ended == [[None, 2.0], [None, 2.0]]
    report = json.loads(found.preflight_file.read_text())
    host = report["nodes"][0]["host"].removesuffix(" (node 0)")
    assert [node["host"] for node in report["nodes"]] == [f"{host} (node 0)", f"{host} (node 1)"]
    ((first, second, rate),) = report["links"]["pairs"]
    assert (first, second) == (0, 1)
    assert rate > 0
    skew = report["links"]["clock_skews_s"][1]  # of one and the same clock
    assert abs(skew) < 0.5
    assert {line["status"] for line in report["lines"]} <= {"ok", "skip"}


def test_a_rank_that_never_comes_is_named_when_the_time_is_over(run: Callable[..., RunDirectory]) -> None:
    found = run(doctor__timeout_s=4)
    alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    done = subprocess.run(
        [sys.executable, "-c", EXAMINE.format(path=str(found.path))],
        env=os.environ | alone | meeting,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    reason = "no answer within doctor.timeout_s = 4 s: rank 1 (node 1): never began"
    error = json.loads((found.log_dir(0) / "rank_00000.error.json").read_text())
    assert (error["exit_code"], error["reason"]) == (1, reason)
    (line,) = json.loads(found.preflight_file.read_text())["lines"]
    assert (line["status"], line["node"], line["measured"]) == ("fail", "rank 1 (node 1)", "never began")


def test_a_server_that_is_away_is_worth_another_try_unless_something_else_is_wrong(
    run: Callable[..., RunDirectory], shards: Path, tmp_path: Path
) -> None:
    server = FaultyServer(shards)
    url = server.url("toy-train-00000.tar")
    server.always["/toy-train-00000.tar"] = "503"
    found = run(data__train_shards=url, data__cache_dir=tmp_path / "cache")
    config = found.load_config()
    try:
        with pytest.raises(UnreachableError, match=r"shard source: .*toy-train-00000\.tar: 2 attempts failed"):
            preflight(config, found, attempt=0, processes=ALONE, console=QUIET)
        settings = config.doctor.model_copy(update={"min_open_files": 10**9})
        config = config.model_copy(update={"doctor": settings})
        with pytest.raises(UnfitError, match="ulimit -n") as told:
            preflight(config, found, attempt=0, processes=ALONE, console=QUIET)
    finally:
        server.close()

    assert "shard source" in str(told.value)
