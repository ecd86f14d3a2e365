"""BatchNorm over all ranks under ZeRO: it trains as under DDP, and goes on as it was."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from configs.run import RunDirectory
from tests.integration.runs import losses, newest, signal_after, start, train
from trainer.checkpoint_files import load_weights

Overrides = Callable[..., list[str]]
STEPS = 12
SYNCHRONISED = {
    "data__global_batch_size": 32,
    "data__micro_batch_size": 8,
    "data__image_size": 96,
    "optimizer__lr": 0.005,
    "trainer__devices": 2,
    "trainer__max_epochs": 6,
    "trainer__max_steps": STEPS,
    "trainer__sync_batchnorm": "true",
}


@pytest.fixture(scope="module")
def under_ddp(tmp_path_factory: pytest.TempPathFactory, toy_overrides: Overrides) -> RunDirectory:
    return train(toy_overrides(**SYNCHRONISED), runs_dir=tmp_path_factory.mktemp("runs"), run_id="ddp")


@pytest.mark.slow
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_zero_trains_like_ddp_and_resumes_bit_for_bit(
    stage: int, under_ddp: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    strategy = {
        "trainer__strategy": "deepspeed",
        "deepspeed__zero_stage": stage,
        "ema__enabled": str(stage < 3).lower(),
    }
    overrides = toy_overrides(**SYNCHRONISED, **strategy)
    zero = train(overrides, runs_dir=tmp_path, run_id="zero")

    assert len(losses(zero)) == STEPS
    assert losses(zero) == pytest.approx(losses(under_ddp), abs=1e-3)

    stopped = RunDirectory(tmp_path / "stopped")
    output = signal_after(process := start(overrides, runs_dir=tmp_path, run_id="stopped"), stopped, step=6)
    assert process.returncode == 85, output
    train(overrides, runs_dir=tmp_path, run_id="stopped")
    whole, resumed, theirs = (load_weights(newest(run)) for run in (zero, stopped, under_ddp))
    assert whole.keys() == resumed.keys() == ({"raw", "ema"} if stage < 3 else {"raw"})
    for kind, tensors in whole.items():
        assert all(torch.equal(tensor, resumed[kind][name]) for name, tensor in tensors.items())
        for name, tensor in tensors.items():
            torch.testing.assert_close(tensor, theirs[kind][name], atol=2e-3, rtol=2e-3, msg=f"{kind} {name}")
