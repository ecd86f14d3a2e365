"""The README's first command, from an empty folder to a network that others can load."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models import load_checkpoint
from timm.models.efficientnet import _gen_efficientnet

from configs.run import RunDirectory
from tests.integration.runs import TIMEOUT_S, rows, train
from trainer.checkpoint_files import load_weights
from trainer.checkpoints import CheckpointDirectory

DIGITS = "configs/experiment/digits.yaml"


def effnet(*arguments: str, cwd: Path) -> str:
    """Run the console script; returns what it printed."""
    script = Path(sys.executable).parent / "effnet"
    done = subprocess.run([script, *arguments], cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDirectory, str]:
    """The README's first command in an empty folder: the run and what was printed."""
    folder = tmp_path_factory.mktemp("newcomer")
    output = effnet("fit", "--config", DIGITS, cwd=folder)
    (path,) = (folder / "runs").iterdir()
    return RunDirectory(path), output


def test_the_digits_reach_their_accuracy(digits: tuple[RunDirectory, str]) -> None:
    run, output = digits
    folder = run.path.parent.parent
    splits = json.loads((folder / "data/digits/_info.json").read_text())["splits"]
    assert (len(splits["train"]["filenames"]), len(splits["validation"]["filenames"])) == (16, 4)
    assert splits["train"]["num_samples"] + splits["validation"]["num_samples"] == 1797

    last = [row for row in rows(run) if row["val/ema_top1"]][-1]
    assert float(last["val/ema_top1"]) >= 0.97
    assert float(last["epoch"]) >= 16
    cores = len(os.sched_getaffinity(0))
    logs = sorted(path.name for path in (run.path / "logs/attempt-00").glob("rank_*.log"))
    assert logs == [f"rank_{rank:05d}.log" for rank in range(2 if cores >= 2 else 1)]
    assert run.load_config().trainer.precision == "bf16-mixed"

    assert "averaged weights" in output
    for command in (f"effnet fit --run runs/{run.run_id}", f"effnet validate runs/{run.run_id}", "wandb sync"):
        assert command in output
    with Image.open(run.path / "curves.png") as curves:
        assert len(np.unique(np.asarray(curves))) > 50


def test_a_finished_run_is_complete_by_itself(digits: tuple[RunDirectory, str]) -> None:
    run, _ = digits
    assert run.outcomes()[-1]["exit_class"] == "done"
    environment = json.loads(run.environment_file.read_text())
    assert environment[-1]["packages"]["torch"] == torch.__version__.split("+")[0]
    assert (run.wandb_dir / "wandb_id").read_text().strip()
    (offline,) = run.wandb_dir.glob("offline-run-*")
    assert list(offline.glob("*.wandb"))
    last = json.loads((run.path / "validation.json").read_text())["results"][-1]
    assert sum(last["per_class"]["samples"]) == 359
    for kind in ("worst", "best"):
        assert len(last[kind]) == 12
        for each in last[kind]:
            with Image.open(run.path / each["picture"]) as picture:
                assert picture.size == (32, 32)
    assert "is done" in subprocess.run(
        [Path(sys.executable).parent / "effnet", "fit", "--config", DIGITS],
        cwd=run.path.parent.parent, capture_output=True, text=True, timeout=TIMEOUT_S, check=True,
    ).stderr  # fmt: skip


def test_validation_repeats_the_figures_of_training(digits: tuple[RunDirectory, str]) -> None:
    run, _ = digits
    printed = effnet("validate", f"runs/{run.run_id}", cwd=run.path.parent.parent)
    result = json.loads((run.path / "validation.json").read_text())
    last = [row for row in rows(run) if row["val/ema_top1"]][-1]

    assert result["samples"] == 359
    for name in ("val/top1", "val/ema_top1"):
        assert result[name] == pytest.approx(float(last[name]))
        assert f"{result[name]:.4f}" in printed
    # One process in place of two, another batch size at the end of a slice: the sums differ by rounding alone.
    assert result["val/ema_loss"] == pytest.approx(float(last["val/ema_loss"]), abs=1e-3)


def test_exported_digits_give_the_same_logits_in_timm(digits: tuple[RunDirectory, str]) -> None:
    run, _ = digits
    printed = effnet("export", f"runs/{run.run_id}", cwd=run.path.parent.parent)
    assert "_gen_efficientnet" in printed

    width, depth = run.load_config().width_and_depth or (1.0, 1.0)
    arguments = {"channel_multiplier": width, "depth_multiplier": depth, "num_classes": 10}
    ours = _gen_efficientnet("efficientnet_b0", **arguments)
    ours.load_state_dict(load_weights(CheckpointDirectory(run.checkpoints).chosen(None))["ema"])
    theirs = _gen_efficientnet("efficientnet_b0", **arguments)
    load_checkpoint(theirs, str(run.path / "export/model.safetensors"))
    images = torch.rand(8, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), atol=1e-5, rtol=0)


def test_an_exported_b0_is_a_checkpoint_path_for_timm(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    overrides = toy_overrides(model__compound_phi=None, trainer__max_steps=2, data__image_size=32)
    run = train(overrides, runs_dir=tmp_path, run_id="b0")
    config = run.load_config()
    for kind, option in (("ema", []), ("raw", ["--raw"])):
        printed = effnet("export", str(run.path), *option, cwd=tmp_path)
        file = run.path / "export/model.safetensors"
        assert f"checkpoint_path={str(file)!r}" in printed
        plain = timm.create_model("efficientnet_b0", num_classes=config.data.num_classes, checkpoint_path=str(file))
        trained = timm.create_model("efficientnet_b0", num_classes=config.data.num_classes)
        trained.load_state_dict(load_weights(CheckpointDirectory(run.checkpoints).chosen(None))[kind])
        images = torch.rand(4, 3, 64, 64)
        with torch.inference_mode():
            torch.testing.assert_close(plain.eval()(images), trained.eval()(images), atol=1e-5, rtol=0)
