import pytest

from trainer.processes import Processes


def test_without_a_launcher_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    processes = Processes.from_environment()

    assert processes == Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)
    assert processes.num_nodes == 1
    assert not processes.is_distributed


def test_the_ranks_are_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 13, "LOCAL_RANK": 5, "WORLD_SIZE": 32, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    processes = Processes.from_environment()

    assert processes == Processes(global_rank=13, local_rank=5, world_size=32, local_world_size=8)
    assert processes.num_nodes == 4
    assert processes.is_distributed


def test_one_process_of_torchrun_is_distributed_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))

    assert Processes.from_environment().is_distributed
