"""NaN in one rank's share of a step, through the command line: skipped, gone back, stopped, killed, resumed."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_config
from configs.run import RunDirectory
from tests.integration.runs import TIMEOUT_S, final_state, logs, newest, train
from tests.integration.test_equivalence import assert_same
from trainer.assembly import build_datamodule
from trainer.checkpoint_files import CHECKPOINT, load_weights, read_manifest
from trainer.nonfinite import KEY
from trainer.rollback import Rollbacks

Overrides = Callable[..., list[str]]
LAST = 8
"""Steps, all in the first epoch, so that no sample comes twice."""
BAD = 3
"""Global batch, from 0."""


@pytest.fixture
def overrides(toy_overrides: Overrides) -> Overrides:
    """Four micro-batches a step, Mixup, CutMix and averaged weights; every step is saved."""

    def changed(**changes: object) -> list[str]:
        settings = {
            "data__micro_batch_size": 4,
            "trainer__max_steps": LAST,
            "checkpoint__every_n_steps": 1,
            "checkpoint__keep_last": 100,
        }
        return toy_overrides(**settings | changes)

    return changed


def batch(overrides: list[str], number: int) -> list[int]:
    """Samples of a global batch."""
    datamodule = build_datamodule(load_config([], overrides).config, "cpu")
    datamodule.setup("validate")
    samples: list[int] = datamodule.order.batch(number)[0].tolist()
    return samples


def poisoned(
    overrides: list[str], *samples: int, runs_dir: Path, run_id: str, expected: int = 0, **kill: int
) -> tuple[RunDirectory, str]:
    """`effnet fit` with poisoned samples, to its end; the run and what was printed."""
    run, spec = RunDirectory(runs_dir / run_id), runs_dir / f"{run_id}.json"
    spec.write_text(json.dumps({"samples": samples, **kill}))
    command = [sys.executable, "-m", "tests.poison", str(spec), "fit", *overrides]
    command += [f"runs_dir={runs_dir}", f"run_id={run_id}"]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ.copy(),
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == expected, done.stdout + logs(run)
    return run, done.stdout


def noted(run: RunDirectory) -> list[dict[str, Any]]:
    return [json.loads(line) for line in run.nonfinite_file.read_text().splitlines()]


def actions(run: RunDirectory) -> list[tuple[int, int, str]]:
    return [(note["attempt"], note["global_batch"], note["action"]) for note in noted(run)]


def state(run: RunDirectory, step: int) -> dict[str, Any]:
    """Weights, statistics, average and what the optimizer remembers."""
    saved = torch.load(run.checkpoints / f"step-{step:09d}" / CHECKPOINT, weights_only=True)
    (average,) = (callback["network"] for callback in saved["callbacks"].values() if "network" in callback)
    momenta = {
        f"optimizer.{key}": value["momentum_buffer"] for key, value in saved["optimizer_states"][0]["state"].items()
    }
    return {**saved["state_dict"], **{f"average.{name}": tensor for name, tensor in average.items()}, **momenta}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("devices", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_nan_on_one_rank_skips_the_step_on_all_and_survives_a_kill(
    devices: int, overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(trainer__devices=devices)
    samples = batch(settings, BAD)
    whole, output = poisoned(settings, samples[13], runs_dir=tmp_path, run_id="whole")

    assert "img_" in output
    changed = [step for step in range(2, LAST + 1) if not same(state(whole, step - 1), state(whole, step))]
    assert changed == [step for step in range(2, LAST + 1) if step != BAD + 1]
    assert all(tensor.isfinite().all() for tensor in state(whole, LAST).values())
    (note,) = noted(whole)
    assert (note["step"], note["global_batch"], note["action"]) == (BAD + 1, BAD, "skipped")
    # The last of four micro-batches: the second of rank 1, where there are two.
    (micro_batch,) = note["micro_batches"]
    assert micro_batch["micro_batch"] == 3
    assert [sample["sample"] for sample in micro_batch["samples"]] == samples[12:]

    kill = {"kill_at": BAD + 1, "kill_rank": devices - 1}
    _, output = poisoned(settings, samples[13], runs_dir=tmp_path, run_id="killed", expected=1, **kill)
    assert "SIGKILL" in output or "signal 9" in output or "killed" in output
    killed, _ = poisoned(settings, samples[13], runs_dir=tmp_path, run_id="killed")
    assert_same(final_state(whole), final_state(killed))
    assert final_state(killed)[KEY] == {"in_a_row": 0, "in_all": 1}


def test_a_run_goes_back_by_itself_and_past_the_bad_data_and_survives_a_kill(
    overrides: Overrides, tmp_path: Path
) -> None:
    # Batches 2 and 3 are bad: step 3 is undone, as on a GPU, step 4 goes back to step 2, which goes on with batch 4.
    settings = overrides(trainer__devices=2, trainer__max_steps=6, fault__max_skipped_steps=1)
    samples = [batch(settings, number)[15] for number in (2, 3)]
    whole, output = poisoned(settings, *samples, runs_dir=tmp_path, behind=True, run_id="whole")

    assert "step 4: the loss is nan, rolled back" in output
    assert actions(whole) == [(0, 2, "skipped"), (0, 3, "rolled back")]
    outcomes = [(outcome["exit_class"], outcome.get("rollback", False)) for outcome in whole.outcomes()]
    assert outcomes == [("retry", True), ("done", False)]
    assert final_state(whole)["effnet"]["position"]["batches_passed_over"] == 2
    assert final_state(whole)["global_step"] == 6

    killed, _ = poisoned(settings, *samples, runs_dir=tmp_path, behind=True, run_id="killed", expected=1, kill_at=5)
    assert [outcome.get("rollback", False) for outcome in killed.outcomes()] == [True, False]
    poisoned(settings, *samples, runs_dir=tmp_path, behind=True, run_id="killed")
    assert_same(final_state(whole), final_state(killed))
    assert actions(killed) == actions(whole)


def test_a_run_that_diverges_ends_with_93(overrides: Overrides, tmp_path: Path) -> None:
    settings = overrides(
        trainer__devices=2,
        optimizer__lr=1e30,
        scheduler__warmup_epochs=0,
        fault__max_skipped_steps=2,
        fault__max_rollbacks=1,
    )
    run = train(settings, runs_dir=tmp_path, run_id="diverging", expected=93)

    classes = [(outcome["exit_class"], outcome.get("rollback", False)) for outcome in run.outcomes()]
    assert classes == [("retry", True), ("do_not_retry", False)]
    assert "fault.max_rollbacks = 1" in run.outcomes()[-1]["reason"]
    assert str(run.nonfinite_file) in run.outcomes()[-1]["reason"]
    twice_skipped = ["skipped", "skipped"]
    expected = [*twice_skipped, "rolled back", *twice_skipped, "stopped"]
    assert [action for _, _, action in actions(run)] == expected
    for tensor in load_weights(newest(run))["raw"].values():
        assert tensor.isfinite().all()


@pytest.mark.parametrize("stage", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_under_deepspeed_a_step_is_skipped_and_the_run_goes_back_too(
    stage: int, overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides(
        trainer__devices=2,
        trainer__strategy="deepspeed",
        deepspeed__zero_stage=stage,
        ema__enabled=str(stage < 3).lower(),
        trainer__max_steps=6,
        fault__max_skipped_steps=1,
    )
    samples = [batch(settings, number)[15] for number in (1, 3, 4)]
    run, _ = poisoned(settings, *samples, runs_dir=tmp_path, run_id="zero")

    assert actions(run) == [(0, 1, "skipped"), (0, 3, "skipped"), (0, 4, "rolled back")]
    assert Rollbacks.read(run.rollbacks_file).records[0]["next_batch"] == 5
    assert [read_manifest(run.checkpoints / f"step-{step:09d}")["rollbacks"] for step in (3, 4)] == [0, 1]
    weights = [load_weights(run.checkpoints / f"step-{step:09d}") for step in range(1, 7)]
    for kind in weights[0]:
        changed = [not same(before[kind], after[kind]) for before, after in pairwise(weights)]
        assert changed == [False, True, True, True, True]
        assert all(tensor.isfinite().all() for tensor in weights[-1][kind].values())
