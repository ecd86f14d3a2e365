"""Real trainings in this process, on the toy shards."""

import os
from collections.abc import Callable, Iterator

import pytest
import torch
import wandb

from configs.run import RunDirectory
from tests.unit.trainer.runs import new_run, train
from tests.wandb_server import WandbServer


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


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    """What stands for W&B's server, and the variables with which this process's client finds it."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("WANDB_MODE", "online")  # so that it is taken back: Lightning sets it for good
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with WandbServer() as server:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        yield server
    wandb.teardown()  # it has read these variables once
