import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from configs.problems import ConfigError, DataError, Problem
from configs.rank_records import rank_error, rank_log
from configs.run import RunDirectory
from tests.unit.trainer.runs import new_run, rows
from trainer.__main__ import _guarded
from trainer.checkpointing import Interrupted
from trainer.processes import Processes
from trainer.rollback import RollBack

Overrides = Callable[..., list[str]]


def trainer(run: RunDirectory, *arguments: str, rank: int = 0) -> "subprocess.CompletedProcess[str]":
    run.log_dir(0).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "trainer", arguments[0], str(run.path), f"--log-dir={run.log_dir(0)}"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    if rank:
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    return subprocess.run(
        [*command, *arguments[1:]], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def error(run: RunDirectory, rank: int = 0) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(rank_error(run.log_dir(0), rank).read_text())
    return record


def test_a_fault_of_the_data_ends_with_93_and_leaves_the_reason(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = new_run(toy_overrides(data__train_shards=tmp_path / "absent-*.tar"), tmp_path)
    before = time.time()
    done = trainer(run, "fit", "--attempt=0")

    assert done.returncode == 93
    record = error(run)
    assert "absent-*.tar" in record["reason"]
    assert "Traceback" not in record["reason"]
    assert (record["rank"], record["host"], record["exit_code"]) == (0, socket.gethostname(), 93)
    assert before < record["time"] < time.time()
    log = rank_log(run.log_dir(0), 0).read_text()
    assert record["reason"] in log
    assert "Traceback" not in log


def test_a_fault_of_the_configuration_ends_with_93_on_every_rank(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = new_run(toy_overrides(model__name="efficientnet_b9", model__compound_phi=None), tmp_path)
    run.config_file.write_text(run.config_file.read_text().replace("image_size: 64", "image_size: null"))
    done = trainer(run, "fit", "--attempt=0", rank=1)

    assert done.returncode == 93
    assert done.stdout == ""
    assert "model.name" in error(run, rank=1)["reason"]
    assert "did you mean efficientnet_b" in error(run, rank=1)["reason"]


def test_a_run_that_ends_well_leaves_no_error(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = new_run(toy_overrides(trainer__max_steps=2), tmp_path)
    done = trainer(run, "fit", "--attempt=0")

    assert done.returncode == 0, done.stdout
    assert "toy: done" in done.stdout
    assert not rank_error(run.log_dir(0), 0).exists()
    assert [row["step"] for row in rows(run)] == ["1", "2", "2"]

    (run.checkpoints / "step-000000002" / "manifest.json").unlink()
    done = trainer(run, "validate")
    assert done.returncode == 93
    assert "no checkpoint that verifies" in error(run)["reason"]


def raising(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("raised", "code", "reason"),
    [
        (DataError("shard 3 is truncated"), 93, "shard 3 is truncated"),
        (ConfigError([Problem(key="a.b", received="1", accepted="2")]), 93, "a.b\n      received  1"),
        (Interrupted("SIGTERM at step 7: checkpointed"), 85, "SIGTERM at step 7: checkpointed"),
        (RuntimeError("the device is gone"), 1, "RuntimeError: the device is gone"),
        (OSError(28, "No space left on device"), 1, "OSError: [Errno 28] No space left on device"),
        (RollBack("step 7: the loss is nan, rolled back"), 1, "step 7: the loss is nan, rolled back"),
    ],
    ids=["data", "configuration", "interrupted", "crash", "disk full", "rolled back"],
)
def test_every_way_to_end_has_its_exit_code_and_reason(
    raised: Exception, code: int, reason: str, tmp_path: Path
) -> None:
    processes = Processes(global_rank=3, local_rank=1, world_size=4, local_world_size=2)

    assert _guarded(raising(raised), log_dir=tmp_path, processes=processes) == code
    record = json.loads(rank_error(tmp_path, 3).read_text())
    assert (record["rank"], record["exit_code"]) == (3, code)
    assert record.get("rollback", False) == isinstance(raised, RollBack)
    assert reason in record["reason"]


def test_work_that_ends_well_is_zero(tmp_path: Path) -> None:
    processes = Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)

    assert _guarded(lambda: None, log_dir=tmp_path, processes=processes) == 0
    assert not list(tmp_path.iterdir())


def test_no_command_costs_torch_before_signals_and_logs_are_set_up() -> None:
    program = "import sys, trainer.__main__; print({'torch', 'pytorch_lightning', 'timm', 'wandb'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
