"""``effnet doctor`` on this machine, with what it looks for really wrong."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.disks import fill, small_disk
from tests.integration.runs import TIMEOUT_S
from tests.web import FaultyServer

Overrides = Callable[..., list[str]]
ANY_SPEED = {"doctor__min_disk_mb_per_s": 0.1, "doctor__max_latency_ms": 2000, "doctor__min_bandwidth_gb_per_s": 0.001}
"""A busy machine fails no one."""


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    started = FaultyServer(shards)
    yield started
    started.close()


def doctor(overrides: list[str], place: Path, *, open_files: int | None = None) -> tuple[int, dict[str, Any], str]:
    """Exit code, report, and standard error."""

    def limit() -> None:
        if open_files is not None:
            resource.setrlimit(resource.RLIMIT_NOFILE, (open_files, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    place.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "launch.cli", "doctor", "--json", *overrides],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
        preexec_fn=limit,
    )
    assert done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout), done.stderr


def failed(report: dict[str, Any]) -> set[str]:
    assert report["ok"] == all(line["status"] != "fail" for line in report["lines"])
    return {line["check"] for line in report["lines"] if line["status"] == "fail"}


def test_a_machine_that_will_do_is_found_so_by_two_ranks_and_nothing_is_left(
    server: FaultyServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    urls = f"{server.url()}toy-train-0000{{0..4}}.tar"
    settings = toy_overrides(trainer__devices=2, data__train_shards=urls, **ANY_SPEED)
    place = [f"data.cache_dir={tmp_path}/cache", "doctor.images_per_s_per_device=0.5", f"runs_dir={tmp_path}/runs"]
    code, report, said = doctor([*settings, *place], tmp_path)

    assert (code, failed(report)) == (0, set()), said
    lines = {line["check"]: line for line in report["lines"]}
    assert lines["all-reduce bandwidth"]["measured"].endswith("GB/s")
    assert lines["shard reading"]["status"] == "ok"
    assert "1 images/s (doctor.images_per_s_per_device)" in lines["shard reading"]["expected"]
    assert lines["shard cache, writing"]["status"] == "ok"
    # By two readers, of shards that are far from each other: not the whole of the data.
    assert 0 < report["nodes"][0]["shards"]["read_bytes"] == sum(server.sent.values())
    assert len(server.sent) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_a_server_that_is_away_and_a_low_limit_are_each_found(
    server: FaultyServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    url = server.url("toy-train-00000.tar")
    server.close()
    settings = toy_overrides(data__train_shards=url, data__download_timeout_s=2, **ANY_SPEED)
    with small_disk(tmp_path / "disk", size_bytes=1 << 20) as disk:
        fill(disk)
        place = [f"runs_dir={disk}", f"data.cache_dir={tmp_path}/cache"]
        code, report, said = doctor([*settings, *place], tmp_path, open_files=256)

    assert code == 93, said
    assert failed(report) == {"run directory", "shard source", "ulimit -n"}
    lines = {line["check"]: line for line in report["lines"] if line["status"] == "fail"}
    assert lines["run directory"]["measured"] == "0.0 MB free"
    assert lines["ulimit -n"]["measured"] == "256"
    assert url in lines["shard source"]["measured"]
    assert all(line["advice"] for line in lines.values())
