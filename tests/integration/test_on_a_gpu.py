"""A run on a GPU as a user has it: JPEGs decoded there, killed and gone on with, measured, asked, and handed on."""

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch

from configs.run import RunDirectory
from datamodules.making.shards import Image, write_split
from tests.conftest import NUM_CLASSES, picture
from tests.integration.runs import TIMEOUT_S, final_state, last_step, logs, losses, rows, start, train, wait_for_step
from tests.integration.test_equivalence import assert_same

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here"),
]
Overrides = Callable[..., list[str]]
MAX_STEPS = 16
DECODERS = ["cpu", "nvjpeg"]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of JPEGs."""
    folder = tmp_path_factory.mktemp("photographs")
    for split, count, first in (("train", 128, 0), ("validation", 37, 1000)):
        numbers = range(first, first + count)
        read = partial(picture, size=96, file_format="JPEG")
        images = [Image(f"img_{i:05d}", "jpg", i % NUM_CLASSES, partial(read, i)) for i in numbers]
        write_split(images, folder, name="toy", split=split, num_shards=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def whole(
    photographs: Path, toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], tuple[list[str], RunDirectory]]:
    """Settings by decoder, and the run that nothing befell."""
    kept: dict[str, tuple[list[str], RunDirectory]] = {}

    def whole(decoder: str) -> tuple[list[str], RunDirectory]:
        if decoder not in kept:
            settings = toy_overrides(
                data__train_shards=f"{photographs}/toy-train-*.tar",
                data__val_shards=f"{photographs}/toy-validation-*.tar",
                data__decoder=decoder,
                data__num_workers=2,
                optimizer__opt="rmsproptf",
                optimizer__lr=0.001,
                trainer__accelerator="cuda",
                trainer__precision="bf16-mixed",
                trainer__deterministic="true",
                trainer__max_steps=MAX_STEPS,
                checkpoint__every_n_steps=1,
            )
            folder = tmp_path_factory.mktemp("runs")
            kept[decoder] = settings, train(settings, runs_dir=folder, run_id="whole")
        return kept[decoder]

    return whole


@pytest.mark.parametrize("decoder", DECODERS)
def test_a_killed_run_ends_with_the_weights_of_one_that_nothing_befell(
    decoder: str, whole: Callable[[str], tuple[list[str], RunDirectory]], tmp_path: Path
) -> None:
    settings, undisturbed = whole(decoder)
    assert len(losses(undisturbed)) == MAX_STEPS
    run = RunDirectory(tmp_path / "killed")
    process = start(settings, runs_dir=tmp_path, run_id="killed")
    wait_for_step(run, 5, process)
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 1, output + logs(run)

    train(settings, runs_dir=tmp_path, run_id="killed")
    assert run.attempts == 2
    assert last_step(run) == MAX_STEPS
    assert_same(final_state(run), final_state(undisturbed))


@pytest.mark.parametrize("decoder", DECODERS)
def test_it_is_measured_asked_and_handed_on(
    decoder: str, whole: Callable[[str], tuple[list[str], RunDirectory]], tmp_path: Path
) -> None:
    _, run = whole(decoder)
    row = rows(run)[-1]
    assert float(row["device/memory_peak_gb"]) > 0
    (tmp_path / "7.jpg").write_bytes(picture(7, size=96, file_format="JPEG"))

    effnet("validate", str(run.path), "--out", str(tmp_path / "validation"), cwd=tmp_path)
    (found,) = (tmp_path / "validation").glob("*.json")
    assert json.loads(found.read_text())
    effnet("predict", str(run.path), "7.jpg", "--out", "7.jsonl", cwd=tmp_path)
    assert json.loads((tmp_path / "7.jsonl").read_text())["predictions"]
    effnet("export", str(run.path), "--format", "onnx", "--out-dir", "out", cwd=tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.safetensors", "model.onnx"}


def effnet(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "launch.cli", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
