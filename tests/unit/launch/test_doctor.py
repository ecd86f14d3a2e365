"""``--preflight`` in what each launcher sends, and what ``effnet doctor`` starts here."""

import os
from pathlib import Path

import pytest

from configs.run import PREFLIGHT
from launch.devices import count_cores
from launch.doctor import RANKS_WITHOUT_GPU, ranks_here
from tests.unit.configs.loading import config_of
from tests.unit.launch.commands import MINIMAL, effnet

JOB = [*MINIMAL, "trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "tracking.mode=disabled"]
CLUSTER = [*JOB, "trainer.num_nodes=2"]
POD = ["launch.image=i", "launch.kubernetes.volumes=[{path: /data, claim: c}]", "launch.kubernetes.work_dir=/data"]
SENT = {
    "local": (JOB, f" {PREFLIGHT}=1 "),
    "slurm": (CLUSTER, f"\nexport {PREFLIGHT}=1\n"),
    "ssh": ([*CLUSTER, "launch.ssh.hosts=[a, b]"], f'"{PREFLIGHT}": "1"'),
    "kubernetes": ([*CLUSTER, *POD], f"name: {PREFLIGHT}\n"),
}


@pytest.mark.parametrize("engine", SENT)
def test_each_launcher_has_ranks_examine_their_nodes_where_it_is_asked_to_and_only_there(
    engine: str, tmp_path: Path
) -> None:
    settings, sent = SENT[engine]
    plain = effnet("launch", engine, "--dry-run", *settings, cwd=tmp_path)
    asked = effnet("launch", engine, "--dry-run", "--preflight", *settings, cwd=tmp_path)

    assert (plain.returncode, asked.returncode) == (0, 0), plain.stderr + asked.stderr
    assert PREFLIGHT not in plain.stdout
    assert sent in asked.stdout


def test_as_many_ranks_are_started_as_a_run_would_have_here_and_no_more_than_there_are_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    many = 64 * count_cores()

    assert ranks_here(None) == min(RANKS_WITHOUT_GPU, count_cores())
    assert ranks_here(config_of("trainer.devices=1")) == 1
    assert ranks_here(config_of(f"trainer.devices={many}", f"data.global_batch_size={64 * many}")) == count_cores()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    assert ranks_here(None) == 3
    assert ranks_here(config_of("trainer.devices=8", "data.global_batch_size=512")) == 3


def test_a_mistake_in_the_configuration_is_told_before_anything_starts(tmp_path: Path) -> None:
    done = effnet("doctor", "doctor.min_files=3", cwd=tmp_path)

    assert done.returncode == 93
    assert "doctor.min_files" in done.stderr
    assert os.listdir(tmp_path) == []
