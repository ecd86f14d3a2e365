"""Runs over real ssh on hosts with networks of their own: they train as one machine does, and end on all or none."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.clusters.hosts import hosts
from tests.clusters.ssh import ended, of_run, start
from tests.integration.runs import logs, losses, train

Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module", autouse=True)
def three_hosts() -> Iterator[None]:
    with hosts(3):
        yield


def told(run: RunDirectory) -> str:
    """What is worth reading when a test fails."""
    return logs(run)


@pytest.mark.parametrize(("hosts", "devices"), [(2, 2), (3, 1)])
def test_hosts_train_like_one_process(hosts: int, devices: int, toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "hosts")
    common = {"data__global_batch_size": 48, "data__micro_batch_size": 4, "optimizer__lr": 0.005}
    launcher = start(toy_overrides(trainer__devices=devices, **common), hosts=hosts, run=run)
    code, output, errors = ended(launcher)

    assert code == 0, errors + output + told(run)
    one = train(toy_overrides(**common), runs_dir=tmp_path, run_id="one")
    assert len(losses(one)) >= 9
    assert losses(run) == pytest.approx(losses(one), abs=1e-4)
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["done"]
    # Each line with its rank, from all of them.
    assert {line.partition(": ")[0] for line in output.splitlines()} == {str(r) for r in range(hosts * devices)}
    (code_dir,) = run.launch_dir.glob("code-*")
    assert str(code_dir) in run.environment_file.read_text()
    assert of_run(run) == []
