"""What a machine has to train on; nvidia-smi is played by a script."""

import os
from pathlib import Path

import pytest

from launch.devices import count_cores, count_gpus, resolve_devices
from tests.unit.configs.loading import config_of

LISTING = """\
GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-6d1f)
  MIG 3g.40gb     Device  0: (UUID: MIG-77e1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-2c3a)
"""


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on PATH."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def nvidia_smi(folder: Path, script: str) -> None:
    tool = folder / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)


@pytest.fixture
def two_gpus(path: Path) -> None:
    nvidia_smi(path, f"#!/bin/sh\n[ \"$1\" = -L ] || exit 1\n/bin/cat <<'.'\n{LISTING}.\n")


def test_gpus_are_counted_by_nvidia_smi(two_gpus: None) -> None:
    assert count_gpus() == 2


def test_without_nvidia_smi_there_are_no_gpus(path: Path) -> None:
    assert count_gpus() == 0


@pytest.mark.parametrize(
    "script",
    [
        "#!/bin/sh\necho 'GPU 0: x'\nexit 9\n",
        "#!/bin/sh\necho 'No devices were found'\n",
        "not a program\n",
        "#!/absent\n",
    ],
)
def test_an_nvidia_smi_that_fails_means_no_gpus(script: str, path: Path) -> None:
    nvidia_smi(path, script)

    assert count_gpus() == 0


@pytest.mark.parametrize(
    ("visible", "count"),
    [
        ("0", 1),
        ("0,1,2,3", 4),
        ("3, 1", 2),
        ("", 0),
        ("-1", 0),
        ("0,-1,1", 1),
        ("NoDevFiles", 0),
        ("GPU-6d1f,GPU-2c3a", 2),
        ("MIG-77e1", 1),
    ],
)
def test_visible_devices_are_counted_as_cuda_does(
    visible: str, count: int, two_gpus: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)

    assert count_gpus() == count


def test_cores_are_those_that_this_process_may_use() -> None:
    assert count_cores() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("overrides", "devices"),
    [
        ([], 2),
        (["trainer.devices=4"], 4),
        (["trainer.strategy=single"], 1),
        (["trainer.accelerator=cuda"], 2),
        (["data.global_batch_size=192"], 1),
        (["data.global_batch_size=384"], 2),
    ],
)
def test_auto_takes_the_gpus_that_split_the_global_batch(overrides: list[str], devices: int, two_gpus: None) -> None:
    assert resolve_devices(config_of(*overrides)) == devices


@pytest.mark.parametrize("overrides", [[], ["trainer.accelerator=cpu"]])
def test_auto_takes_the_cores_where_there_is_no_gpu(
    overrides: list[str], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(6)))

    assert resolve_devices(config_of("data.global_batch_size=512", *overrides)) == 4
    assert resolve_devices(config_of("data.global_batch_size=320", "data.num_lanes=5", *overrides)) == 5


def test_auto_on_the_cpu_ignores_gpus(two_gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})

    assert resolve_devices(config_of("trainer.accelerator=cpu")) == 1
