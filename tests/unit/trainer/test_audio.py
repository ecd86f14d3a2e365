"""A run on recordings, from shards to an exported folder: what holds for images holds for it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from configs.run import RunDirectory
from datamodules.making.shards import write_split
from tests.unit.recordings import recording_samples, sound
from tests.unit.trainer.runs import ALONE, as_killed_after, changed, new_run, predicted, train, weights
from trainer.checkpoint_files import read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.evaluation.command import Request, validate
from trainer.export import export

STEPS = 6


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recordings")
    write_split(recording_samples(64), folder, name="sounds", split="train", num_shards=4, seed=1)
    write_split(recording_samples(18, first=1000), folder, name="sounds", split="validation", num_shards=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(
    toy_overrides: Callable[..., list[str]], recordings: Path, tmp_path_factory: pytest.TempPathFactory
) -> RunDirectory:
    """A finished run of six steps, Mixup and all that is random of recordings on."""
    overrides = toy_overrides(
        data__train_shards=f"{recordings}/sounds-train-*.tar",
        data__val_shards=f"{recordings}/sounds-validation-*.tar",
        data__modality="audio",
        data__audio__seconds=0.4,
        data__audio__gain_db=6,
        data__augmentation__auto_augment=None,
        model__in_chans=1,
        trainer__max_epochs=None,
        trainer__max_steps=STEPS,
        checkpoint__every_n_steps=1,
        checkpoint__keep_last=100,
    )
    return train(new_run([each for each in overrides if "max_epochs" not in each], tmp_path_factory.mktemp("run")))


def test_a_killed_run_ends_with_the_same_weights(run: RunDirectory, tmp_path: Path) -> None:
    killed = as_killed_after(run, tmp_path, step=3)
    train(killed, attempt=1)

    assert not changed(weights(run, STEPS), weights(killed, STEPS))
    assert changed(weights(run, 3), weights(killed, STEPS))


def test_validation_repeats_the_figures_of_training(run: RunDirectory, tmp_path: Path) -> None:
    validate(Request(run=run.path, out=tmp_path), processes=ALONE, console=Console(file=io.StringIO(), width=160))
    raw, *_ = json.loads((tmp_path / "validation.json").read_text())["results"]
    saved = read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))["metrics"]

    assert raw["samples"] == 18
    assert raw["loss"] == pytest.approx(saved["val/loss"], abs=1e-6)


def test_a_file_is_predicted_as_its_copy_in_a_shard(run: RunDirectory, recordings: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "good.wav").write_bytes(sound(1000))
    (folder / "bad.flac").write_bytes(b"fLaC")
    (folder / "notes.txt").write_bytes(b"no sound")
    out = tmp_path / "answers.jsonl"
    predicted(run, tmp_path, folder, f"{recordings}/sounds-validation-*.tar", raw=True, top_k=1, out=out)
    bad, good, *of_shards = (json.loads(line) for line in out.read_text().splitlines())

    assert [Path(each["image"]).name for each in (bad, good)] == ["bad.flac", "good.wav"]
    assert "not a readable recording" in bad["error"]
    assert len(of_shards) == 18
    same = next(each for each in of_shards if each["image"].endswith("sound_01000"))
    answers = [each["predictions"][0]["probability"] for each in (same, good)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)


def test_an_exported_folder_says_how_its_pictures_are_drawn(run: RunDirectory, tmp_path: Path) -> None:
    export(run, out_dir=tmp_path, raw=True, console=Console(file=io.StringIO()))
    about = json.loads((tmp_path / "config.json").read_text())

    assert about["pretrained_cfg"]["mean"] == [0.26]
    assert about["effnet"]["modality"] == "audio"
    assert about["effnet"]["audio"]["seconds"] == 0.4
