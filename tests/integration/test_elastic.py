"""A run that changes its number of processes at each resume is the run that never was interrupted."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from configs.run import RunDirectory
from tests.integration.runs import TIMEOUT_S, final_state, logs, losses, newest, refused, rows, start, train
from tests.unit.trainer.runs import as_killed_after, new_run
from trainer.checkpoint_files import MANIFEST, load_weights
from trainer.elastic_zero import NUMBERS, OPTIMIZER

Overrides = Callable[..., list[str]]
STEPS = 12
FOUR_MICRO_BATCHES = {
    "data__global_batch_size": 32,
    "data__image_size": 128,
    "optimizer__lr": 0.005,
    "trainer__max_epochs": 6,
    "trainer__max_steps": STEPS,
}
ROOT = Path(__file__).parents[2]
RECORDED_TRAINER = Path(__file__).with_name("recorded_trainer.py")


def attempt(run: RunDirectory, notes: Path, *, devices: int, stop_at: int | None = None) -> int:
    """Train on so many processes; returns the status."""
    number = run.begin_attempt()
    command = [sys.executable]
    if devices > 1:
        command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}", "--max-restarts=0"]
    command += [str(RECORDED_TRAINER), "fit", str(run.path)]
    command += [f"--log-dir={run.log_dir(number)}", f"--attempt={number}"]
    notes.mkdir(exist_ok=True)
    environment = os.environ | {"EFFNET_RECORD": str(notes), "PYTHONPATH": str(ROOT)}
    if stop_at is not None:
        environment["EFFNET_STOP_AT"] = str(stop_at)
    return subprocess.run(command, env=environment, capture_output=True, timeout=TIMEOUT_S, check=False).returncode


def samples(notes: Path) -> dict[int, list[int]]:
    """The samples of each step's global batch, in order; each micro-batch was trained on once."""
    found = [json.loads(line) for file in notes.glob("*.jsonl") for line in file.read_text().splitlines()]
    keys = [(note["step"], note["micro_batch"]) for note in found]
    assert len(keys) == len(set(keys))
    batches: dict[int, list[int]] = {}
    for note in sorted(found, key=lambda note: (note["step"], note["micro_batch"])):
        batches.setdefault(note["step"], []).extend(note["samples"])
    return batches


def test_any_numbers_of_processes_one_after_the_other_train_as_one_that_was_never_interrupted(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    whole = new_run(toy_overrides(**FOUR_MICRO_BATCHES), tmp_path / "whole")
    assert attempt(whole, tmp_path / "whole-notes", devices=1) == 0, logs(whole)

    run, notes = new_run(toy_overrides(**FOUR_MICRO_BATCHES), tmp_path / "elastic"), tmp_path / "notes"
    for devices, stop_at in ((2, 2), (1, 5), (4, 8)):
        # torchrun has a status of its own; the ranks leave theirs.
        assert attempt(run, notes, devices=devices, stop_at=stop_at) != 0
        errors = [json.loads(file.read_text()) for file in run.log_dir(run.attempts - 1).glob("*.error.json")]
        assert [error["exit_code"] for error in errors] == [85] * devices, logs(run)
        assert stop_at < final_state(run)["global_step"] <= stop_at + 2
    assert attempt(run, notes, devices=2) == 0, logs(run)

    assert samples(notes) == samples(tmp_path / "whole-notes")
    assert sorted(samples(notes)) == list(range(STEPS))
    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    names = ("step", "epoch", "samples_seen", "lr")
    assert [[row[name] for name in names] for row in rows(run)] == [
        [row[name] for name in names] for row in rows(whole)
    ]
    ours, theirs = load_weights(newest(run)), load_weights(newest(whole))
    for kind, weights in ours.items():
        for name, tensor in weights.items():
            torch.testing.assert_close(tensor, theirs[kind][name], atol=1e-4, rtol=1e-3, msg=f"{kind} {name}")


@pytest.mark.parametrize(
    ("stage", "opt", "offload"),
    [
        pytest.param(1, "adamw", False, marks=pytest.mark.slow),
        pytest.param(2, "sgd", False, marks=pytest.mark.slow),
        (3, "sgd", False),
        pytest.param(3, "adamw", False, marks=pytest.mark.slow),
        pytest.param(2, "sgd", True, marks=pytest.mark.slow),
        pytest.param(3, "sgd", True, marks=pytest.mark.slow),
    ],
)
def test_zero_goes_on_on_another_number_of_processes(
    stage: int, opt: str, offload: bool, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(
        **FOUR_MICRO_BATCHES,
        trainer__strategy="deepspeed",
        deepspeed__zero_stage=stage,
        deepspeed__offload_optimizer=str(offload).lower(),
        optimizer__opt=opt,
        ema__enabled=str(stage < 3).lower(),
    )
    keeping = [*overrides, "trainer.max_steps=9", "checkpoint.every_n_steps=3", "checkpoint.keep_last=9"]
    whole = train([*keeping, "trainer.devices=2"], runs_dir=tmp_path, run_id="toy")
    as_killed_after(whole, tmp_path / "elastic", step=3)
    for devices, until in ((1, 6), (4, 9)):
        settings = [*overrides, f"trainer.devices={devices}", f"trainer.max_steps={until}"]
        # What is copied has ended once, and a run that has does not begin again.
        (tmp_path / "elastic" / "toy" / "outcome.json").unlink()
        run = train(settings, runs_dir=tmp_path / "elastic", run_id="toy")
        assert len(losses(run)) == until

    assert losses(run) == pytest.approx(losses(whole), rel=1e-4)
    assert numbers(newest(run)) == numbers(newest(whole))
    assert (opt == "sgd") == (numbers(newest(run)) == {})
    ours, theirs = load_weights(newest(run)), load_weights(newest(whole))
    assert ours.keys() == theirs.keys()
    if opt == "sgd":  # adamw divides by the size of the gradient, and so makes large steps of what is rounding
        for kind, weights in ours.items():
            for name, tensor in weights.items():
                torch.testing.assert_close(tensor, theirs[kind][name], atol=2e-4, rtol=1e-3, msg=f"{kind} {name}")


def numbers(checkpoint: Path) -> dict[str, object]:
    """What the optimizer keeps besides tensors, such as its step."""
    with safe_open(checkpoint / OPTIMIZER, framework="pt") as file:
        found: dict[str, object] = json.loads(file.metadata()[NUMBERS])
    return found


def test_zero_of_an_older_format_is_refused_with_the_command_that_uses_its_weights(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(
        trainer__strategy="deepspeed", deepspeed__zero_stage=1, trainer__devices=2, trainer__max_steps=2
    )
    path = newest(run := train(overrides, runs_dir=tmp_path, run_id="zero"))
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["files"][OPTIMIZER]  # format 1 has none
    (path / MANIFEST).write_text(json.dumps(manifest | {"format_version": 1}))
    (path / OPTIMIZER).unlink()

    alone = [*overrides, "trainer.devices=1", "trainer.max_steps=3"]
    output = refused(start(alone, runs_dir=tmp_path, run_id="zero"))
    assert "2 processes in all" in output
    (advice,) = [line for line in logs(run).splitlines() if f"model.checkpoint_path={path}" in line][:1]
    settings = advice[advice.index("model.checkpoint_path=") :].split()[0]
    warm = train([*alone, settings], runs_dir=tmp_path, run_id="NEW")
    assert len(losses(warm)) == 3


def test_what_rank_0_finds_out_ends_every_rank_with_the_reason(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__devices=2, trainer__max_steps=2)
    missing = tmp_path / "step-000000009"

    output = refused(start([*overrides, f"resume={missing}"], runs_dir=tmp_path, run_id="run"))
    run = RunDirectory(tmp_path / "run")
    assert f"checkpoint {missing}: no readable manifest" in output.replace("\n", "")
    errors = [json.loads(file.read_text()) for file in run.log_dir(0).glob("rank_*.error.json")]
    assert errors
    assert all(str(missing) in error["reason"] and error["exit_code"] == 93 for error in errors)
