"""``--preflight``: all nodes of a job are examined before it trains, and one that would hold it up is named."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from configs.rank_records import rank_errors
from configs.run import RunDirectory
from tests.clusters.hosts import hosts, slow_link
from tests.clusters.slurm import slurm_cluster, wait_for
from tests.clusters.ssh import CONFIG, of_run
from tests.integration.runs import TIMEOUT_S, logs

Overrides = Callable[..., list[str]]
ANY_SPEED = {"launch__max_failures": 0, "doctor__min_disk_mb_per_s": 0.1, "doctor__max_latency_ms": 2000}
"""A busy machine fails no one, and what fails is not tried again."""


def launch(engine: str, overrides: list[str], run: RunDirectory) -> "subprocess.CompletedProcess[str]":
    place = [f"runs_dir={run.path.parent}", f"run_id={run.run_id}"]
    command = [sys.executable, "-m", "launch.cli", "launch", engine, "--preflight", *overrides, *place]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, env=os.environ, check=False)


def test_a_run_trains_when_its_preflight_has_found_nothing(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    done = launch(
        "local",
        toy_overrides(trainer__devices=2, trainer__max_steps=2, **ANY_SPEED, doctor__min_bandwidth_gb_per_s=0.001),
        run,
    )

    assert done.returncode == 0, done.stdout + done.stderr + logs(run)
    report = json.loads(run.preflight_file.read_text())
    assert report["ok"]
    assert {"all-reduce bandwidth", "run directory", "shard source", "ulimit -n"} <= {
        line["check"] for line in report["lines"]
    }
    assert report["links"]["ranks"] == 2
    assert report["links"]["bandwidth"] > 0
    assert "all-reduce bandwidth" in done.stdout
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["done"]


def test_the_one_of_three_hosts_whose_link_is_slow_is_named_and_nothing_trains(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    names = ["launch.ssh.hosts=[host1, host2, host3]", f"launch.ssh.config_file={CONFIG}", "trainer.num_nodes=3"]
    settings = toy_overrides(data__global_batch_size=48, **ANY_SPEED, doctor__min_bandwidth_gb_per_s=0.006)
    with hosts(3), slow_link(3, rate="20mbit"):
        done = launch("ssh", [*settings, *names], run)
        left = of_run(run)

    said = done.stdout + done.stderr
    assert done.returncode == 93, said + logs(run)
    assert left == []
    report = json.loads(run.preflight_file.read_text())
    failed = {(line["check"], line["node"]) for line in report["lines"] if line["status"] == "fail"}
    assert failed == {("all-reduce bandwidth", "all"), ("bandwidth to neighbours", "host3")}
    assert [node["host"] for node in report["nodes"]] == ["host1", "host2", "host3"]
    assert "host3: bandwidth to neighbours: 0.00" in said
    assert "see which node is slow: host3" in said
    (outcome,) = run.outcomes()
    assert (outcome["exit_class"], outcome["rank"]) == ("do_not_retry", 0)
    assert outcome["reason"].startswith("preflight: host3: bandwidth to neighbours: 0.00")
    assert [error["exit_code"] for error in rank_errors(run.log_dir(0))] == [93, 93, 93]
    assert not run.metrics_file.exists()


@pytest.mark.slow
def test_a_slurm_job_that_will_not_do_ends_before_it_trains_and_is_not_requeued(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    settings = toy_overrides(trainer__num_nodes=2, doctor__min_open_files=10**9, **ANY_SPEED)
    with slurm_cluster(2):
        done = launch("slurm", settings, run)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: len(run.outcomes()) > 0, what=f"the end of the job\n{logs(run)}")

    (outcome,) = run.outcomes()
    assert (outcome["exit_class"], outcome["rank"]) == ("do_not_retry", 0)
    report = json.loads(run.preflight_file.read_text())
    assert {node["host"] for node in report["nodes"]} == {"node1", "node2"}
    assert {line["node"] for line in report["lines"] if line["check"] == "ulimit -n"} == {"node1", "node2"}
    assert report["links"]["ranks"] == 2
    assert not run.metrics_file.exists()
