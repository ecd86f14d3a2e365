"""Recordings in shards: through the loader, where bad ones are, and through the commands that look at shards."""

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs.batches import BatchLayout
from configs.problems import DataError
from configs.schema import Audio, Data
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.predicting.images import InputImages
from datamodules.predicting.inputs import find_inputs
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import EvaluationPlan, TrainingPlan
from datamodules.streaming.signals import SIGNALS
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import Substituting
from datamodules.streaming.transforms import channel_statistics
from tests.unit.datamodules.archives import write_tar
from tests.unit.datamodules.sources import shards_main
from tests.unit.recordings import encoded, tone

BAD = {3: b"", 4: encoded(np.full(4000, np.nan), subtype="FLOAT"), 11: encoded(tone(900))[:3000]}
DATA = Data(
    train_shards="train", val_shards="val", modality="audio", prefetch_batches=2, audio=Audio(seconds=0.32, gain_db=3.0)
)


def write(path: Path, numbers: range) -> Path:
    members = []
    for i in numbers:
        contents = BAD.get(i, encoded(tone(300 * (i + 1), seconds=0.5), form="FLAC" if i % 2 else "WAV"))
        members += [(f"tone_{i}.{'flac' if i % 2 else 'wav'}", contents), (f"tone_{i}.cls", str(i % 4).encode())]
    return write_tar(path, members)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tones")
    write(folder / "tones-train-00000.tar", range(12))
    write(folder / "tones-train-00001.tar", range(12, 20))
    return folder


@pytest.fixture(scope="module")
def index(folder: Path) -> ShardIndex:
    return build_index(sorted(folder.glob("*.tar")), modality="audio")


def batches(index: ShardIndex, num_workers: int) -> list[Batch]:
    """An epoch of 20 samples, in micro-batches of 2."""
    data = DATA.model_copy(update={"num_workers": num_workers})
    layout = BatchLayout(global_batch_size=4, micro_batch_size=2, world_size=1)
    order = TrainingOrder(index.shard_samples, seed=5, global_batch_size=4, num_lanes=2, window_shards=1)
    source = ShardSource(index, TrainingPlan(order, layout, 0))
    draw = SIGNALS["audio"].training(data, 32)
    decode = Substituting(Decode(draw, in_chans=1, num_classes=4, seed=5, modality="audio"), source)
    loader = make_loader(source, decode, data, batch_size=2, pin_memory=False, image_bytes=32 * 32)
    with closing(TrainingStream(loader, first=0)) as stream:
        return [Batch(*(each.clone() for each in batch)) for batch in stream.take(10)]


def test_recordings_come_as_pictures_and_the_next_stands_in_for_a_bad_one(
    index: ShardIndex, capfd: pytest.CaptureFixture[str]
) -> None:
    found = batches(index, 0)
    assert all(batch.images.shape == (2, 1, 32, 32) and batch.images.dtype == torch.uint8 for batch in found)
    assert sum(int(batch.substituted.sum()) for batch in found) == 3
    said = capfd.readouterr().err
    assert "tone_3.flac: not a readable recording (not WAV or FLAC: empty); sample tone_5 takes its place" in said
    assert "tone_4.wav: not a readable recording (a sample of nan, where 1 is full scale)" in said
    assert "tone_11.flac: not a readable recording" in said


def test_pictures_do_not_depend_on_workers(index: ShardIndex) -> None:
    for one, other in zip(batches(index, 0), batches(index, 2), strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.samples, other.samples)


def test_evaluation_stops_at_a_bad_recording(index: ShardIndex) -> None:
    source = ShardSource(index, EvaluationPlan(samples=20, batch_size=4, global_rank=0, world_size=1))
    decode = Decode(SIGNALS["audio"].evaluation(DATA, 32), in_chans=1, num_classes=4, seed=None, modality="audio")
    data = DATA.model_copy(update={"num_workers": 0})
    items = iter(make_loader(source, decode, data, batch_size=4, pin_memory=False))
    error = next(items)
    assert isinstance(error, DataError)
    assert "tone_3.flac: not a readable recording" in str(error)


def test_shards_of_images_are_not_taken_for_recordings(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "a.tar", [("img.png", b"x"), ("img.cls", b"0")])
    with pytest.raises(DataError, match=r"sample img has .*, none of wav, flac"):
        build_index([shard], modality="audio")


def test_augmentation_off_is_evaluations_picture(index: ShardIndex) -> None:
    still = DATA.model_copy(update={"augmentation": DATA.augmentation.model_copy(update={"enabled": False})})
    recording = SIGNALS["audio"].read(encoded(tone(700, seconds=2)), 1)
    expected = SIGNALS["audio"].evaluation(DATA, 32)(recording)
    assert torch.equal(SIGNALS["audio"].training(still, 32)(recording), expected)
    assert not torch.equal(SIGNALS["audio"].training(DATA, 32)(recording), expected)


def test_statistics_are_for_one_channel() -> None:
    assert channel_statistics(DATA, 1) == ((0.26,), (0.22,))


def test_files_folders_and_shards_are_predicted_and_bad_ones_named(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(encoded(tone(400)))
    (tmp_path / "b.FLAC").write_bytes(encoded(tone(400), form="FLAC"))
    (tmp_path / "c.wav").write_bytes(b"RIFF")
    (tmp_path / "notes.txt").write_text("no recording")
    inputs = find_inputs([str(tmp_path), str(folder / "tones-train-00001.tar")], DATA)
    images = InputImages(inputs, DATA.model_copy(update={"num_classes": 4}), image_size=32, in_chans=1)
    assert len(images) == 3 + 8
    good, same, bad, first = (images[number] for number in range(4))
    assert good.pixels is not None
    assert same.pixels is not None
    assert (good.pixels.float() - same.pixels.float()).abs().mean() < 1
    assert bad.pixels is None
    assert "not a readable recording" in str(bad.error)
    assert (first.name, first.label) == (f"{folder}/tones-train-00001.tar/tone_12", 0)


def test_verify_names_bad_recordings(folder: Path) -> None:
    output = shards_main("verify", folder / "tones-train-00000.tar", "--modality", "audio", expected=93)
    for name in ("tone_3", "tone_4", "tone_11"):
        assert name in output
    assert "tone_5" not in output
    shards_main("verify", folder / "tones-train-00001.tar", "--modality", "audio")


def test_info_has_lengths_and_rates_and_draws_waves(folder: Path, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    shard = folder / "tones-train-00001.tar"
    output = shards_main("info", shard, "--modality", "audio", "--contact-sheet", sheet)
    assert "length, ms" in output
    assert "500" in output
    assert "sample rate, Hz" in output
    assert "FLAC PCM_16" in output
    assert "(8 recordings)" in output
    with Image.open(sheet) as drawn:
        assert len(np.unique(np.asarray(drawn))) > 2
