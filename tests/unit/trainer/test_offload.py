"""The optimizer in the host's memory, under ZeRO: the same run, its states elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.run import RunDirectory
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import new_run
from trainer.checkpoint_files import load_weights

Overrides = Callable[..., list[str]]
STEPS = 3
BUILDING_S = 500
"""At most: the first start of DeepSpeed on a machine compiles its CPU extension."""
RANK = """
import json, sys
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from trainer import fit
from trainer.processes import Processes
from trainer.signals import StopFlag

build, trainers = fit.build_trainer, []

def kept(*arguments, **settings):
    trainers.append(build(*arguments, **settings))
    return trainers[-1]

fit.build_trainer = kept
found = []
for path in json.loads({paths!r}):
    run, console = RunDirectory(Path(path)), Console(file=sys.stderr)
    fit.fit(run, attempt=0, flag=StopFlag(), processes=Processes.from_environment(), console=console)
    zero = trainers[-1].strategy.deepspeed_engine.optimizer
    states = [tensor for state in zero.optimizer.state.values() for tensor in state.values()]
    found.append({{"offloads": zero.cpu_offload, "devices": sorted({{tensor.device.type for tensor in states}})}})
print(json.dumps(found))
"""


@pytest.mark.parametrize("accelerator", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_states_are_with_the_host_and_the_run_is_the_same(
    accelerator: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    """On CUDA alike to rounding, as the host's arithmetic is another; it has not been run there yet."""
    settings: dict[str, Any] = {
        "trainer__accelerator": accelerator,
        "trainer__strategy": "deepspeed",
        "deepspeed__zero_stage": 2,
        "trainer__max_steps": STEPS,
        "trainer__deterministic": "true",
    }
    runs = [
        new_run(toy_overrides(**settings, deepspeed__offload_optimizer=offload), tmp_path / offload)
        for offload in ("false", "true")
    ]
    program = RANK.format(paths=json.dumps([str(run.path) for run in runs]))
    (found,) = run_ranks(program, world_size=1, timeout_s=BUILDING_S)

    assert found == [
        {"offloads": False, "devices": [accelerator]},
        {"offloads": True, "devices": ["cpu"]},
    ]
    stays, goes = (load_weights(last(run)) for run in runs)
    for kind, weights in stays.items():
        for name, tensor in weights.items():
            near = {"atol": 0.0, "rtol": 0.0} if accelerator == "cpu" else {"atol": 1e-5, "rtol": 1e-4}
            torch.testing.assert_close(tensor, goes[kind][name], **near, msg=f"{kind} {name}")


def last(run: RunDirectory) -> Path:
    return run.checkpoints / f"step-{STEPS:09d}"
