"""Real trainings in this process, on the toy shards."""

from collections.abc import Callable

import pytest
import torch

from configs.run import RunDirectory
from tests.unit.trainer.runs import new_run, train


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """What is compared bit for bit must not differ by the threads that an earlier test has set."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(toy_overrides: Callable[..., list[str]], tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of two epochs, of 9 and 8 steps, that has kept a checkpoint of every step, and 3 predictions."""
    settings = {"checkpoint__every_n_steps": 1, "checkpoint__keep_last": 100, "tracking__examples": 3}
    overrides = toy_overrides(trainer__max_epochs=2, **settings)
    return train(new_run(overrides, tmp_path_factory.mktemp("trained")))


@pytest.fixture(autouse=True)
def memory_of_the_tests_own_process_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """What one test trains with would be in what the next one measures. Processes that tests start are as ever."""
    monkeypatch.setattr("trainer.assembly.keep_freed_memory", lambda: False)
