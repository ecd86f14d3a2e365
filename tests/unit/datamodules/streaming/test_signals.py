"""Samples of other modalities on their way to a batch: found in shards, drawn by their own randomness, replaced."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.problems import DataError
from configs.schema import Data, Text
from datamodules.images.decoding import BadSampleError
from datamodules.indexing.opening import open_index
from datamodules.making.shards import write_split
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import make_loader
from datamodules.streaming.picked import PickedPlan, picked_batches, spread
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.signals import SIGNALS
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import Substituting
from datamodules.text.drawing import TextDrawing
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar
from tests.unit.texts import passage, text_samples

TEXT = Text(rows=6, columns=12, random_scale=(0.8, 1.2), random_shift=0.5)


def data(**changes: Any) -> Data:
    settings = {"train_shards": "train", "val_shards": "val", "modality": "text", "text": TEXT, "num_workers": 0}
    return Data.model_validate(settings | changes)


def decode(*, seed: int | None, **changes: Any) -> Decode:
    signal, settings = SIGNALS["text"], data(**changes)
    transform = (signal.evaluation if seed is None else signal.training)(settings, 64)
    return Decode(transform, in_chans=1, num_classes=4, seed=seed, modality="text")


def sample(contents: bytes, **changes: Any) -> dict[str, Any]:
    fields = {"__key__": "k", "__url__": "/a.tar", "__index__": 5, "__epoch__": 2, "__repeat__": 0, "__stage__": 0}
    return fields | {"__label__": 1, "__weight__": 1.0, "txt": contents} | changes


def test_a_text_becomes_a_grey_picture_with_its_label_and_number() -> None:
    image, label, number, weight, substituted = decode(seed=None)(sample(passage(1)))

    assert (label, number, weight, substituted) == (1, 5, 1.0, False)
    assert (image.shape, image.dtype) == ((1, 64, 64), torch.uint8)
    expected = TextDrawing(TEXT, 64, randomly=False).draw(passage(1).decode())
    assert torch.equal(image[0], torch.from_numpy(expected))


def test_what_is_random_depends_on_seed_epoch_sample_and_repeat_alone() -> None:
    def drawn(seed: int = 3, **changes: int) -> bytes:
        image, *_ = decode(seed=seed)(sample(passage(1), **changes))
        return image.numpy().tobytes()

    first = drawn()
    seed_everything(99)
    assert drawn() == first
    pictures = {first, drawn(seed=4), drawn(__epoch__=3), drawn(__index__=6), drawn(__repeat__=1)}
    assert len(pictures) == 5
    seed_everything(3, AUGMENTATION, 2, 5)
    assert TextDrawing(TEXT, 64, randomly=True).draw(passage(1).decode()).tobytes() == first


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    plain = decode(seed=3, text=Text(rows=6, columns=12), augmentation={"enabled": False})
    evaluation = decode(seed=None, text=Text(rows=6, columns=12))
    assert torch.equal(plain(sample(passage(1)))[0], evaluation(sample(passage(1)))[0])


def test_a_bad_text_is_named_and_the_next_takes_its_place(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    texts = [passage(0), b"\xff\xfe", passage(2)]
    members = [
        (f"t{i}.{extension}", contents)
        for i, text in enumerate(texts)
        for extension, contents in (("txt", text), ("cls", b"1"))
    ]
    index = open_index([write_tar(tmp_path / "a.tar", members)], modality="text")
    decoding = decode(seed=None)
    with pytest.raises(BadSampleError, match=r"a\.tar: sample t1\.txt: not UTF-8: .* at byte 0"):
        decoding(sample(texts[1], __url__="a.tar", __key__="t1"))
    source = ShardSource(index, PickedPlan(spread(3, 3), 3))
    loader = make_loader(source, Substituting(decoding, source), data(), batch_size=3, pin_memory=False)
    (batch,) = loader
    assert not isinstance(batch, Exception)
    assert batch.samples.tolist() == [0, 2, 2]
    assert batch.substituted.tolist() == [False, True, False]
    assert "sample t1.txt: not UTF-8" in capfd.readouterr().err


def test_the_same_shards_are_images_and_texts_each_by_an_index_of_its_own(tmp_path: Path) -> None:
    both = [("a.png", picture(1)), ("a.txt", passage(1)), ("a.cls", b"1")]
    shard = write_tar(tmp_path / "both.tar", both)
    assert len(open_index([shard])) == len(open_index([shard], modality="text")) == 1
    assert len(list(tmp_path.glob(".effnet-index-*.npz"))) == 2

    write_tar(shard, [*both, ("b.txt", passage(2)), ("b.cls", b"2")])
    index = open_index([shard], modality="text")
    assert (len(index), index.modality) == (2, "text")
    assert open_index([shard], modality="text").modality == "text"
    with pytest.raises(DataError, match=re.escape("sample b has ['txt', 'cls'], none of jpg, jpeg, png, webp")):
        open_index([shard])
    write_tar(shard, [("a.png", picture(1)), ("a.cls", b"1")])
    with pytest.raises(DataError, match=re.escape("sample a has ['png', 'cls'], none of txt")):
        open_index([shard], modality="text")


def test_picked_samples_are_texts(tmp_path: Path) -> None:
    write_split(text_samples(8), tmp_path, name="texts", split="train", num_shards=2, seed=0)
    shards = f"{tmp_path}/texts-train-*.tar"
    settings = data(train_shards=shards, val_shards=shards, eval_batch_size=8, num_classes=4)
    (batch,) = picked_batches(settings, shards, 8, image_size=64, in_chans=1)
    assert batch.images.shape == (8, 1, 64, 64)
    assert len({image.numpy().tobytes() for image in batch.images}) == 8
