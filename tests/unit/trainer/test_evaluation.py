import io
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import timm
import torch
from PIL import Image as PilImage
from rich.console import Console
from safetensors.torch import save_file
from sklearn.metrics import confusion_matrix
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.nn.functional import cross_entropy

from configs.problems import ConfigError, DataError, UnreachableError
from configs.run import RunDirectory
from datamodules.imagenet import ImageNetDataModule
from datamodules.images.decoding import open_image
from datamodules.making.shards import Image, write_split
from datamodules.streaming.transforms import evaluation_transform
from tests.conftest import NUM_CLASSES, picture
from tests.unit.trainer.runs import ALONE, average, weights
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.evaluation.command import Request, validate
from trainer.evaluation.samples import SampleTable

NUMBERS = range(1000, 1037)
LABELS = np.array([number % NUM_CLASSES for number in NUMBERS])
ON_CPU = ("trainer.accelerator=cpu", "trainer.precision=32-true", "data.num_workers=0", "data.eval_batch_size=8")
REAL = {f"img_{number:05d}.png": [number % 4, (number + 1) % 4] if number % 3 else [] for number in NUMBERS}


def evaluate(request: Request) -> tuple[dict[str, Any], str]:
    """What is written and printed."""
    output = io.StringIO()
    validate(request, processes=ALONE, console=Console(file=output, width=160))
    folder = request.out or request.run
    return json.loads((folder / "validation.json").read_text()), output.getvalue()


def files_of(run: RunDirectory) -> dict[Path, int]:
    """Its files with when they were written, but for logs."""
    return {path: path.stat().st_mtime_ns for path in run.path.rglob("*") if path.is_file() and path.suffix != ".log"}


def order_of(shards: Path) -> list[int]:
    """Numbers of the pictures in the order of the shards."""
    names = [
        name
        for file in sorted(shards.glob("toy-validation-*.tar"))
        for name in subprocess.run(["tar", "tf", file], capture_output=True, text=True, check=True).stdout.split()
        if name.endswith(".png")
    ]
    return [int(name.removeprefix("img_").removesuffix(".png")) for name in names]


def test_each_size_crop_and_set_of_weights_is_exact(trained: RunDirectory, shards: Path, tmp_path: Path) -> None:
    file = tmp_path / "real.json"
    file.write_text(json.dumps(REAL))
    out, before = tmp_path / "out", files_of(trained)
    request = Request(run=trained.path, image_sizes=(64, 96), crop_pcts=(0.875, 1.0), real_labels=str(file), out=out)
    result, printed = evaluate(request)

    config = trained.load_config()
    assert [(r["image_size"], r["crop_pct"], r["weights"]) for r in result["results"]] == [
        (size, crop, kind) for size in (64, 96) for crop in (0.875, 1.0) for kind in ("raw", "ema")
    ]
    matrices = np.load(out / "validation" / "confusion.npz")
    for found in result["results"]:
        size, crop, kind = found["image_size"], found["crop_pct"], found["weights"]
        module = build_module(config)
        module.network.load_state_dict((weights if kind == "raw" else average)(trained, 17))
        transform = evaluation_transform(config.data.model_copy(update={"crop_pct": crop}), size)
        images = torch.stack([transform(open_image(picture(number), "RGB")) for number in NUMBERS])
        with torch.no_grad():
            logits = module.eval()(images)
        predicted = logits.argmax(1).numpy()
        assert found["samples"] == 37
        assert found["loss"] == pytest.approx(float(cross_entropy(logits, torch.tensor(LABELS))), rel=1e-4)
        assert found["top1"] == pytest.approx(float((predicted == LABELS).mean()))
        expected = confusion_matrix(LABELS, predicted, labels=range(NUM_CLASSES))
        np.testing.assert_array_equal(matrices[f"{size}-{crop:g}-{kind}"], expected)
        assert found["per_class"]["samples"] == np.bincount(LABELS).tolist()
        assert found["per_class"]["top1"] == pytest.approx((np.diag(expected) / np.bincount(LABELS)).tolist())
        right = [int(p) in REAL[f"img_{n:05d}.png"] for n, p in zip(NUMBERS, predicted, strict=True) if n % 3]
        assert found["real"] == {"samples": len(right), "top1": pytest.approx(np.mean(right)), "top5": 1.0}
        assert f"{found['calibration_error']:.4f}" in printed
    assert sorted(path.name for path in (out / "validation").glob("*.png")) == sorted(
        f"{kind}-{cut}.png"
        for kind in ("classes", "confusion", "reliability")
        for cut in ("64-0.875", "64-1", "96-0.875", "96-1")
    )
    assert files_of(trained) == before
    assert "37 samples of 64 and 96 pixels" in printed


def test_two_ranks_find_what_one_does(trained: RunDirectory, tmp_path: Path) -> None:
    setting = "data.eval_batch_size=1"  # with larger ones, sums within a network differ by the size of the last
    one, _ = evaluate(Request(run=trained.path, image_sizes=(64, 70), out=tmp_path, overrides=(setting,)))
    out = tmp_path / "two"
    subprocess.run(
        [sys.executable, "-m", "launch.cli", "validate", trained.path, f"--out={out}", "--devices=2",
         "--image-size=64,70", setting],
        check=True, timeout=300, capture_output=True, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip
    two = json.loads((out / "validation.json").read_text())

    assert (one.pop("devices"), two.pop("devices")) == (1, 2)
    assert one == two
    assert len(one["results"]) == 4
    logs = {path.name for path in (out / "logs" / "validate").glob("rank_*")}
    assert logs == {"rank_00000.log", "rank_00001.log"}


class Doubled(ImageNetDataModule):
    """Has one sample twice, and another never; as many as the index in all."""

    def val_dataloader(self) -> Any:
        batches = list(super().val_dataloader())
        for batch in batches:
            batch.samples[batch.samples == 3] = 4

        class Loader:
            def __len__(self) -> int:
                return len(batches)

            def __iter__(self) -> Any:
                return iter(batches)

        return Loader()


def test_a_sample_that_comes_twice_for_another_is_noticed(trained: RunDirectory) -> None:
    config = trained.load_config()
    datamodule = build_datamodule(config, "cpu")
    datamodule.__class__ = Doubled
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[SampleTable()], loggers=[])

    with pytest.raises(RuntimeError, match="2 of 37 samples of the index did not come exactly once"):
        trainer.validate(build_module(config), datamodule, verbose=False)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of four classes as timm saves it, with a preprocessing of its own."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(1)
    network = timm.create_model("test_efficientnet", num_classes=NUM_CLASSES)
    save_file(network.state_dict(), folder / "model.safetensors")
    description = {
        "architecture": "test_efficientnet",
        "num_classes": NUM_CLASSES,
        "pretrained_cfg": {
            "input_size": [3, 40, 40],
            "test_input_size": [3, 48, 48],
            "interpolation": "bilinear",
            "crop_pct": 0.8,
            "mean": [0.5, 0.4, 0.3],
            "std": [0.2, 0.25, 0.3],
            "num_classes": NUM_CLASSES,
        },
    }
    (folder / "config.json").write_text(json.dumps(description))
    return folder


def test_a_model_of_timms_sees_images_as_timm_shows_them(published: Path, shards: Path, tmp_path: Path) -> None:
    name = f"local-dir:{published}"
    validation = (f"{shards}/toy-validation-*.tar",)
    result, printed = evaluate(Request(run=tmp_path, model=name, shards=validation, overrides=ON_CPU))

    network = timm.create_model(name, pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(network, use_test_size=True), is_training=False)
    images = torch.stack([transform(PilImage.open(io.BytesIO(picture(number)))) for number in NUMBERS])
    with torch.no_grad():
        logits = network(images)
    assert (result["image_size"], result["crop_pct"], result["checkpoint"], result["step"]) == (48, 0.8, None, None)
    assert result["val/loss"] == pytest.approx(float(cross_entropy(logits, torch.tensor(LABELS))), rel=1e-3)
    (found,) = result["results"]
    assert found["weights"] == "raw"
    assert found["top1"] == pytest.approx(float((logits.argmax(1).numpy() == LABELS).mean()))
    assert "37 samples of 48 pixels" in printed


def request_of(file: Path, shards: Path, out: Path, **changes: Any) -> Request:
    validation = (f"{shards}/toy-validation-*.tar",)
    size = (32,)
    return Request(
        **{"run": out, "model": "test_efficientnet", "weights": file, "shards": validation, "image_sizes": size,
           "overrides": ON_CPU} | changes
    )  # fmt: skip


def test_a_file_of_weights_has_its_own_classes_and_channels_and_both_sets(shards: Path, tmp_path: Path) -> None:
    raw, averaged = (timm.create_model("test_efficientnet", num_classes=5, in_chans=1) for _ in range(2))
    torch.save({"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()}, tmp_path / "both.pth")
    torch.save({"state_dict_ema": averaged.state_dict()}, tmp_path / "one.pth")
    result, _ = evaluate(request_of(tmp_path / "both.pth", shards, tmp_path))
    alone, _ = evaluate(request_of(tmp_path / "one.pth", shards, tmp_path))

    first, second = result["results"]
    assert (first["weights"], second["weights"], result["num_classes"]) == ("raw", "ema", 5)
    assert first["loss"] != second["loss"]
    assert [each["loss"] for each in alone["results"]] == [second["loss"]]
    assert first["per_class"]["top1"][4] is None  # no image is of that class


def network_of(classes: int) -> nn.Module:
    network = timm.create_model("test_efficientnet", num_classes=classes)
    assert isinstance(network, nn.Module)
    return network


def test_a_file_is_neither_run_nor_taken_for_another_network(shards: Path, tmp_path: Path) -> None:
    code, other = tmp_path / "code.pth", tmp_path / "other.safetensors"
    code.write_bytes(pickle.dumps({"state_dict": {"a": partial(print, "run")}}))
    save_file(network_of(NUM_CLASSES).state_dict(), other)

    with pytest.raises(DataError, match=r"code\.pth holds"):
        evaluate(request_of(code, shards, tmp_path))
    with pytest.raises(DataError, match=r"other\.safetensors is of another network than efficientnet_b0: Missing key"):
        evaluate(request_of(other, shards, tmp_path, model="efficientnet_b0"))
    with pytest.raises(DataError, match="neither a file nor a folder"):
        evaluate(request_of(tmp_path / "absent.pth", shards, tmp_path))


def test_all_that_does_not_fit_is_said_at_once(shards: Path, tmp_path: Path) -> None:
    file, real = tmp_path / "two.safetensors", tmp_path / "real.json"
    save_file(network_of(2).state_dict(), file)
    real.write_text(json.dumps({"another": 7}))
    with pytest.raises(ConfigError) as raised:
        evaluate(request_of(file, shards, tmp_path, real_labels=str(real)))

    text = str(raised.value)
    assert [problem.key for problem in raised.value.problems] == ["--shards", "--real-labels", "--real-labels"]
    assert "labels 0 to 3" in text
    assert "labels 0 to 1, the classes of two.safetensors: 2" in text
    assert "class 7" in text
    assert "labels of img_0" in text


def test_names_of_classes_must_be_as_many_as_the_models(tmp_path: Path) -> None:
    images = [Image(f"img_{i}", "png", i % 3, partial(picture, i)) for i in range(6)]
    write_split(images, tmp_path, name="toy", split="validation", num_shards=1, seed=1)
    (tmp_path / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    file = tmp_path / "four.safetensors"
    save_file(network_of(4).state_dict(), file)
    with pytest.raises(ConfigError, match=r"3 classes in classes\.json"):
        evaluate(request_of(file, tmp_path, tmp_path))

    save_file(network_of(3).state_dict(), file)
    result, printed = evaluate(request_of(file, tmp_path, tmp_path))
    assert result["class_names"] == ["a", "b", "c"]
    assert "│ a" in printed or "│ b" in printed or "│ c" in printed


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("efficientnet_b9", r"did you mean efficientnet_b\d"),
        ("efficientnet_b0.nobody", r"efficientnet_b0\.ra_in1k"),
        ("efficientnet_b6", "nobody published any"),
        ("local-dir:absent", r"a folder with a config\.json"),
        ("s3:absent", "Unknown model source"),
    ],
)
def test_a_model_that_timm_does_not_have_is_refused(name: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        evaluate(Request(run=tmp_path, model=name, shards=("none",)))


def test_a_model_and_labels_that_are_not_there_are_said_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        evaluate(Request(run=tmp_path, model="local-dir:absent", shards=("none",), real_labels="absent.json"))
    assert [problem.key for problem in raised.value.problems] == ["MODEL", "--real-labels"]


def test_weights_that_cannot_be_downloaded_are_a_reason_to_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UnreachableError, match=r"test_efficientnet\.r160_in1k"):
        evaluate(Request(run=tmp_path, model="test_efficientnet.r160_in1k", shards=("none",)))


def test_a_damaged_folder_of_timms_is_the_datas_fault(published: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((published / "config.json").read_text())
    with pytest.raises(DataError, match="timm makes no model of local-dir"):
        evaluate(Request(run=tmp_path, model=f"local-dir:{tmp_path}", shards=("none",)))


def test_a_run_whose_training_shards_are_gone_is_evaluated(
    toy_overrides: Callable[..., list[str]], trained: RunDirectory, tmp_path: Path
) -> None:
    gone = tmp_path / "run"
    gone.mkdir()
    (gone / "checkpoints").symlink_to(trained.checkpoints)
    text = trained.config_file.read_text()
    (gone / "config.yaml").write_text(text.replace("toy-train-*.tar", "gone-*.tar"))
    assert "gone-*.tar" in (gone / "config.yaml").read_text()

    result, _ = evaluate(Request(run=gone))
    assert result["samples"] == 37
