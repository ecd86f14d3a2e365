"""A sweep's agents as an array of a real Slurm."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.clusters.slurm import command, effnet, slurm_cluster, wait_for
from tests.integration.runs import logs
from tests.integration.test_sweeps import sweep_file


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with slurm_cluster(2):
        yield


@pytest.mark.slow
def test_two_tasks_share_a_sweep_and_one_that_checkpoints_goes_on(
    toy_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    file = sweep_file(tmp_path, seed=[1, 2])
    overrides = [*toy_overrides(trainer__max_epochs=20, checkpoint__every_n_epochs=20), f"runs_dir={tmp_path}"]

    effnet("sweep", "--sweep", str(file), *overrides, "--slurm", "--agents", "2", "--count", "1")

    (folder,) = tmp_path.glob("sweep-local-*")
    (job,) = re.findall(r'"job_id": "(\d+)"', (folder / "launch" / "submissions.jsonl").read_text())
    wait_for(lambda: len(trials(tmp_path)) == 2 and all(map(begun, trials(tmp_path))), what="both trials")
    command("scancel", "--batch", "--signal=USR1", f"{job}_1")
    wait_for(lambda: not command("squeue", "--noheader"), what=f"the end of all tasks\n{told(tmp_path)}")

    ends = sorted([past["exit_code"] for past in run.outcomes()] for run in trials(tmp_path))
    assert ends == [[0], [85, 0]], told(tmp_path)
    assert sorted(run.load_config().seed for run in trials(tmp_path)) == [1, 2]


def trials(folder: Path) -> list[RunDirectory]:
    return [RunDirectory(file.parent) for file in folder.glob("*/trial.json")]


def begun(run: RunDirectory) -> bool:
    return run.metrics_file.exists()


def told(folder: Path) -> str:
    outputs = [file.read_text() for file in folder.glob("sweep-*/launch/slurm-*.out")]
    return "\n".join([*outputs, *map(logs, trials(folder))])
