"""A run on texts, from shards to an exported folder: what holds for images holds for it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as PilImage
from rich.console import Console

from configs.problems import ConfigError
from configs.run import RunDirectory
from datamodules.making.shards import write_split
from datamodules.streaming.signals import SIGNALS
from tests.unit.texts import passage, text_samples
from tests.unit.trainer.runs import ALONE, as_killed_after, changed, new_run, predicted, train, weights
from trainer.artifact_snapshots import card_of
from trainer.checkpoint_files import read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.evaluation.command import Request, validate
from trainer.evaluation.extremes import KINDS
from trainer.export import export

STEPS = 6


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_split(text_samples(64), folder, name="texts", split="train", num_shards=4, seed=1)
    write_split(text_samples(18, first=1000), folder, name="texts", split="validation", num_shards=2, seed=1)
    return folder


@pytest.fixture(scope="module")
def run(toy_overrides: Callable[..., list[str]], texts: Path, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run of six steps, Mixup and all that is random of text on."""
    overrides = toy_overrides(
        data__train_shards=f"{texts}/texts-train-*.tar",
        data__val_shards=f"{texts}/texts-validation-*.tar",
        data__modality="text",
        data__text__rows=8,
        data__text__columns=16,
        data__text__random_shift=0.5,
        data__text__random_scale="[0.8, 1.2]",
        data__augmentation__auto_augment=None,
        model__in_chans=1,
        trainer__max_epochs=None,
        trainer__max_steps=STEPS,
        checkpoint__every_n_steps=1,
        checkpoint__keep_last=100,
        tracking__examples=2,
    )
    return train(new_run([each for each in overrides if "max_epochs" not in each], tmp_path_factory.mktemp("run")))


def test_a_killed_run_ends_with_the_same_weights(run: RunDirectory, tmp_path: Path) -> None:
    killed = as_killed_after(run, tmp_path, step=3)
    train(killed, attempt=1)

    assert not changed(weights(run, STEPS), weights(killed, STEPS))
    assert changed(weights(run, 3), weights(killed, STEPS))


def test_its_end_finds_what_validating_it_finds_with_the_pictures_of_texts(run: RunDirectory, tmp_path: Path) -> None:
    validate(Request(run=run.path, out=tmp_path), processes=ALONE, console=Console(file=io.StringIO()))
    at_the_end = json.loads((run.path / "validation.json").read_text())

    assert at_the_end == json.loads((tmp_path / "validation.json").read_text())
    draw = SIGNALS["text"].evaluation(run.load_config().data, 64)
    for result in at_the_end["results"]:
        assert [len(result[kind]) for kind in KINDS] == [2, 2]
        for each in (*result["worst"], *result["best"]):
            text = passage(int(each["key"].rpartition("_")[2])).decode()
            with PilImage.open(run.path / each["picture"]) as picture:
                np.testing.assert_array_equal(np.asarray(picture), draw(text)[0].numpy())


def test_it_is_validated_at_other_sizes_and_refuses_crops(run: RunDirectory, texts: Path, tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=160)
    validate(Request(run=run.path, image_sizes=(64, 96), out=tmp_path), processes=ALONE, console=console)
    results = json.loads((tmp_path / "validation.json").read_text())["results"]
    assert [(each["image_size"], each["crop_pct"]) for each in results] == [(64, 1.0)] * 2 + [(96, 1.0)] * 2
    assert {each["samples"] for each in results} == {18}
    assert results[0]["loss"] != results[2]["loss"]
    saved = read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))["metrics"]
    assert results[0]["loss"] == pytest.approx(saved["val/loss"], abs=1e-6)

    with pytest.raises(ConfigError) as caught:
        validate(Request(run=run.path, crop_pcts=(0.9, 1.0)), processes=ALONE, console=console)
    (problem,) = caught.value.problems
    assert (problem.key, problem.received) == ("--crop-pct", "0.9,1")
    assert problem.accepted == "nothing: data.modality = text shows the whole of its pictures"


def test_shards_and_text_files_are_predicted_alike(run: RunDirectory, texts: Path, tmp_path: Path) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "good.txt").write_bytes(passage(1000))
    (folder / "bad.txt").write_bytes(b"\xff")
    (folder / "photo.png").write_bytes(b"no text")
    out, sheet = tmp_path / "answers.jsonl", tmp_path / "sheet.png"
    predicted(run, tmp_path, folder, f"{texts}/texts-validation-*.tar", raw=True, top_k=1, out=out, contact_sheet=sheet)
    bad, good, *of_shards = (json.loads(line) for line in out.read_text().splitlines())

    assert [Path(each["image"]).name for each in (bad, good)] == ["bad.txt", "good.txt"]
    assert "not UTF-8" in bad["error"]
    assert len(of_shards) == 18
    same = next(each for each in of_shards if each["image"].endswith("text_01000"))
    answers = [each["predictions"][0]["probability"] for each in (same, good)]
    assert answers[0] == pytest.approx(answers[1], abs=1e-6)
    saved = read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))["metrics"]
    assert np.mean([each["predictions"][0]["label"] == each["label"] for each in of_shards]) == pytest.approx(
        saved["val/top1"], abs=1e-6
    )
    with PilImage.open(sheet) as page:
        assert page.width == 1680


def test_an_exported_folder_says_how_its_pictures_are_drawn(run: RunDirectory, tmp_path: Path) -> None:
    export(run, out_dir=tmp_path, raw=True, console=Console(file=io.StringIO()))
    about = json.loads((tmp_path / "config.json").read_text())

    assert about["pretrained_cfg"]["input_size"] == [1, 64, 64]
    assert about["pretrained_cfg"]["crop_pct"] == 1.0
    assert about["pretrained_cfg"]["mean"] == [0.1]
    assert about["effnet"]["modality"] == "text"
    assert about["effnet"]["text"]["columns"] == 16
    card = (tmp_path / "README.md").read_text()
    assert "text drawn by effnet in 64x64 (font null, rows 8, columns 16," in card
    assert "resized" not in card
    assert "`config.json` has the same" in card
    of_artifact = card_of(run, run.load_config(), CheckpointDirectory(run.checkpoints).chosen(None), parameters=1)
    assert "text drawn by effnet in 64x64 (font null, rows 8, columns 16," in of_artifact
    assert "config.json" not in of_artifact  # it is not among a checkpoint's files
