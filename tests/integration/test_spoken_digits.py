"""Spoken digits from an empty folder: recordings are made, learned, validated and predicted, by the shipped recipe."""

import csv
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.integration.runs import rows

RECIPE = "configs/experiment/audio_digits.yaml"
VALIDATION = "data/spoken-digits/spoken-digits-validation-*.tar"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]
pytest.importorskip("espeakng_loader", reason="espeak-ng's voices come with the extra speech")


def effnet(*arguments: str, cwd: Path) -> str:
    """Run the console script; returns what it printed."""
    script = Path(sys.executable).parent / "effnet"
    done = subprocess.run([script, *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    folder = tmp_path_factory.mktemp("spoken")
    effnet("fit", "--config", RECIPE, cwd=folder)
    (path,) = (folder / "runs").iterdir()
    return RunDirectory(path)


def test_digits_of_speakers_never_heard_are_told_apart(run: RunDirectory) -> None:
    splits = json.loads((run.path.parent.parent / "data/spoken-digits/_info.json").read_text())["splits"]
    assert (splits["train"]["num_samples"], splits["validation"]["num_samples"]) == (2860, 600)
    last = [row for row in rows(run) if row["val/ema_top1"]][-1]
    assert float(last["val/ema_top1"]) >= 0.92
    assert float(last["val/top1"]) >= 0.92


def test_validation_and_predictions_repeat_it(run: RunDirectory) -> None:
    folder = run.path.parent.parent
    effnet("validate", str(run.path), cwd=folder)
    validation = json.loads((run.path / "validation.json").read_text())
    last = [row for row in rows(run) if row["val/ema_top1"]][-1]
    assert validation["samples"] == 600
    assert validation["val/ema_top1"] == pytest.approx(float(last["val/ema_top1"]))

    sheet, answers = folder / "sheet.png", folder / "answers.csv"
    effnet("predict", str(run.path), VALIDATION, f"--out={answers}", f"--contact-sheet={sheet}", cwd=folder)
    found = list(csv.DictReader(answers.open()))
    right = sum(row["label"] == row["label_1"] for row in found)
    assert right / 600 == pytest.approx(validation["val/ema_top1"])
    assert sheet.stat().st_size > 10_000


def test_files_are_predicted_and_a_bad_one_is_said(run: RunDirectory) -> None:
    folder = run.path.parent.parent
    recordings = folder / "recordings"
    recordings.mkdir()
    with tarfile.open(folder / VALIDATION.replace("*", "00000")) as shard:
        names = [name for name in shard.getnames() if not name.endswith(".cls")]
        for name in names:
            (recordings / name).write_bytes(shard.extractfile(name).read())  # type: ignore[union-attr]
    (recordings / "noise.wav").write_bytes(b"RIFF of nothing")
    said = effnet("predict", str(run.path), str(recordings), f"--out={folder / 'files.csv'}", cwd=folder)
    assert "noise.wav" in said
    assert "not a readable recording" in said
    found = [row for row in csv.DictReader((folder / "files.csv").open()) if row["class_1"]]
    assert len(found) == len(names) == 150
    right = sum(Path(row["image"]).name.startswith(row["class_1"]) for row in found)
    assert right >= 0.9 * len(names)
