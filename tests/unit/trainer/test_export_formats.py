"""What ``effnet export`` writes beside timm's layout, read back by the programs that it is for."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from configs.problems import DataError
from configs.run import RunDirectory
from datamodules.streaming.picked import picked_batches
from tests.unit.launch.commands import effnet
from tests.unit.trainer.runs import average, new_run, train, weights
from tests.unit.trainer.test_export import images, ours
from trainer.assembly import build_module
from trainer.checkpoint_files import read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.export import export
from trainer.exporting import onnx_files
from trainer.exporting.graphs import write_torchscript

Overrides = Callable[..., list[str]]
PREPARED = {
    "input_size": [3, 64, 64],
    "interpolation": "bicubic",
    "crop_pct": 0.875,
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


@pytest.fixture(scope="module")
def run(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of two epochs of a network that timm has under a name of its own, with a checkpoint after each step."""
    settings = {"model__name": "test_efficientnet", "model__compound_phi": None, "trainer__max_epochs": 1}
    settings |= {"checkpoint__every_n_steps": 1, "checkpoint__keep_last": 3}
    return train(new_run(toy_overrides(**settings), tmp_path_factory.mktemp("formats")))


@pytest.fixture(scope="module")
def exported(run: RunDirectory, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder with everything, and what was printed."""
    folder, output = tmp_path_factory.mktemp("export"), io.StringIO()
    formats = ["onnx-int8", "torch-export", "torchscript"]
    console = Console(file=output, width=100)
    export(run, out_dir=folder, raw=False, console=console, formats=formats, calibration_samples=32)
    return folder, output.getvalue()


def last(run: RunDirectory) -> int:
    return int(read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))["step"])


def expected(run: RunDirectory) -> torch.Tensor:
    return ours(run, average(run, last(run)), images())


def test_onnx_runtime_gives_the_same_logits_for_any_batch_size(exported: tuple[Path, str], run: RunDirectory) -> None:
    session = onnxruntime.InferenceSession(exported[0] / "model.onnx", providers=["CPUExecutionProvider"])

    for size in (1, 4):
        [found] = session.run(["logits"], {"images": images()[:size].numpy()})
        torch.testing.assert_close(torch.from_numpy(found), expected(run)[:size], atol=1e-5, rtol=1e-4)
    assert "ONNX: " in exported[1]
    assert "largest difference" in exported[1]


@pytest.mark.parametrize("name", ["model.onnx", "model.int8.onnx"])
def test_an_onnx_file_says_how_images_are_prepared(name: str, exported: tuple[Path, str], run: RunDirectory) -> None:
    found = {entry.key: json.loads(entry.value) for entry in onnx.load(exported[0] / name).metadata_props}

    assert found["step"] == last(run)
    assert {key: found[key] for key in PREPARED} == PREPARED


def test_int8_is_smaller_and_set_beside_fp32(exported: tuple[Path, str]) -> None:
    folder, printed = exported
    whole, small = json.loads((folder / "onnx.json").read_text())

    assert (whole["file"], small["file"], small["samples"]) == ("model.onnx", "model.int8.onnx", 37)
    assert (folder / "model.int8.onnx").stat().st_size == pytest.approx(small["megabytes"] * 1e6)
    assert small["megabytes"] < 0.6 * whole["megabytes"]
    assert f"{small['top1']:.4f}" in printed
    kinds = {node.op_type for node in onnx.load(folder / "model.int8.onnx").graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds


def test_fp32_in_onnx_runtime_has_the_top1_of_validation(exported: tuple[Path, str], run: RunDirectory) -> None:
    whole, _ = json.loads((exported[0] / "onnx.json").read_text())
    manifest = read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))

    assert whole["top1"] == pytest.approx(manifest["metrics"]["val/ema_top1"], abs=1e-6)


def test_torch_reads_the_program_and_torchscript(exported: tuple[Path, str], run: RunDirectory) -> None:
    about: dict[str, str] = {"preprocessing.json": ""}
    program = torch.export.load(exported[0] / "model.pt2", extra_files=about).module()
    torch.testing.assert_close(program(images()), expected(run), atol=1e-5, rtol=1e-4)
    assert PREPARED.items() <= json.loads(about["preprocessing.json"]).items()

    about = {"preprocessing.json": ""}
    script = torch.jit.load(exported[0] / "model.torchscript.pt", _extra_files=about)
    torch.testing.assert_close(script(images()), expected(run), atol=1e-5, rtol=1e-4)
    assert PREPARED.items() <= json.loads(about["preprocessing.json"]).items()


def test_a_graph_that_does_not_agree_is_not_written(tmp_path: Path) -> None:
    file = tmp_path / "model.torchscript.pt"
    network = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 2))  # in training: other numbers each time

    with pytest.raises(DataError, match=r"torchscript.pt is not written: largest difference .* --tolerance 0.001"):
        write_torchscript(network, file, about={}, input_size=(3, 2, 2), tolerance=1e-3)
    assert not list(tmp_path.iterdir())


def test_without_the_packages_nothing_is_written(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "PACKAGES", ("onnx", "onnx_that_is_not_there"))

    with pytest.raises(DataError, match=r"onnx_that_is_not_there: pip install 'effnet\[onnx\]'"):
        export(run, out_dir=tmp_path / "out", raw=False, console=Console(quiet=True), formats=["onnx"])
    assert not (tmp_path / "out").exists()


def test_the_model_card_is_read_by_the_hub(exported: tuple[Path, str], run: RunDirectory) -> None:
    card = ModelCard((exported[0] / "README.md").read_text())
    manifest = read_manifest(CheckpointDirectory(run.checkpoints).chosen(None))

    assert (card.data.library_name, card.data.pipeline_tag) == ("timm", "image-classification")
    top1 = next(each for each in card.data.eval_results or () if each.metric_name == "top-1")
    assert top1.metric_value == manifest["metrics"]["val/ema_top1"]
    assert (exported[0] / "curves.png").read_bytes() == (run.path / "curves.png").read_bytes()
    recipe = yaml.safe_load(card.text.partition("```yaml")[2].partition("```")[0])
    assert recipe["model"]["name"] == "test_efficientnet"
    assert "runs_dir" not in recipe


@pytest.mark.parametrize("back", [0, 1], ids=["these weights", "others"])
def test_the_model_card_has_what_was_found_of_these_very_weights(back: int, run: RunDirectory, tmp_path: Path) -> None:
    found = {"image_size": 64, "crop_pct": 0.875, "samples": 37, "top1": 0.25, "top5": 1.0, "loss": 1.5}
    results = [{**found, "weights": "ema", "calibration_error": 0.0625}, {**found, "weights": "raw", "top1": 0.125}]
    file = run.path / "validation.json"
    file.write_text(json.dumps({"step": last(run) - back, "results": results}))
    try:
        export(run, out_dir=tmp_path, raw=False, console=Console(quiet=True))
    finally:
        file.unlink()

    card = (tmp_path / "README.md").read_text()
    assert ("| 64, crop 0.875 | 37 | 0.2500 | 1.0000 | 1.5000 | 0.0625 |" in card) == (back == 0)
    assert "0.1250" not in card


@pytest.mark.parametrize("named", [False, True], ids=["the newest", "by name"])
def test_weights_are_averaged_over_checkpoints(named: bool, run: RunDirectory, tmp_path: Path) -> None:
    steps = [last(run), last(run) - 1]
    directory = CheckpointDirectory(run.checkpoints)
    which = {"checkpoint": [directory.named(step) for step in steps]} if named else {"average": 2}
    export(run, out_dir=tmp_path, raw=True, console=Console(quiet=True), **which)

    found, (first, second) = load_file(tmp_path / "model.safetensors"), (weights(run, step) for step in steps)
    assert not torch.equal(first["classifier.weight"], second["classifier.weight"])
    for name, tensor in found.items():
        mean = (first[name].double() + second[name].double()) / 2 if tensor.is_floating_point() else first[name]
        assert torch.equal(tensor, mean.to(tensor.dtype)), name
    assert json.loads((tmp_path / "config.json").read_text())["effnet"]["mean_over_steps"] == steps


def test_batchnorm_of_averaged_weights_is_estimated_anew_where_that_is_asked_for(
    run: RunDirectory, tmp_path: Path
) -> None:
    output = io.StringIO()
    export(run, out_dir=tmp_path / "mean", raw=True, console=Console(file=output, width=200), average=2)
    assert (
        "BatchNorm's statistics are the mean of theirs, not estimated anew (--bn-samples N does)" in output.getvalue()
    )
    assert "the mean of theirs, not estimated anew" in (tmp_path / "mean" / "README.md").read_text()

    export(run, out_dir=tmp_path, raw=True, console=Console(file=output, width=200), average=2, bn_samples=20)
    told = "BatchNorm's statistics estimated anew over 16 training images"  # two batches of 8, without the rest
    assert output.getvalue().splitlines()[-1] == told
    assert told in (tmp_path / "README.md").read_text()
    assert json.loads((tmp_path / "config.json").read_text())["effnet"]["batchnorm_estimated_over"] == 16

    mean, found = (load_file(folder / "model.safetensors") for folder in (tmp_path / "mean", tmp_path))
    differing = {name for name in mean if not torch.equal(mean[name], found[name])}
    assert differing == {name for name in mean if name.endswith(("running_mean", "running_var", "num_batches_tracked"))}
    config = run.load_config()
    stem = timm.create_model("test_efficientnet", num_classes=4, checkpoint_path=str(tmp_path / "model.safetensors"))
    module = build_module(config)
    shape = {"image_size": 64, "in_chans": 3, "seed": config.seed}
    batches = list(picked_batches(config.data, config.data.train_shards, 20, **shape))[:2]
    with torch.no_grad():
        outputs = [stem.conv_stem(module.normalise(batch.images)) for batch in batches]
    expected = torch.stack([each.mean((0, 2, 3)) for each in outputs]).mean(0)
    torch.testing.assert_close(found["bn1.running_mean"], expected, atol=1e-5, rtol=1e-4)


def test_one_checkpoint_has_statistics_of_its_own(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--bn-samples is for a mean over checkpoints"):
        export(run, out_dir=tmp_path, raw=True, console=Console(quiet=True), bn_samples=8)
    refused = effnet("export", str(run.path), "--bn-samples", "8", cwd=tmp_path)
    assert refused.returncode == 93
    assert "one checkpoint has statistics of its own" in refused.stderr


def test_more_checkpoints_than_there_are_cannot_be_averaged(run: RunDirectory, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="checkpoints that verify, 40 are wanted"):
        export(run, out_dir=tmp_path, raw=False, console=Console(quiet=True), average=40)


def test_timm_reads_a_folder_of_grey_images_and_another_epsilon(toy_overrides: Overrides, tmp_path: Path) -> None:
    settings = {"model__name": "test_efficientnet", "model__compound_phi": None, "model__bn_eps": 0.05}
    grey = {"model__in_chans": 1, "data__augmentation__auto_augment": None, "trainer__max_steps": 1}
    run = train(new_run(toy_overrides(**settings, **grey), tmp_path))
    export(run, out_dir=tmp_path / "export", raw=False, console=Console(quiet=True))

    network = timm.create_model(f"local-dir:{tmp_path}/export", pretrained=True)
    with torch.no_grad():
        found = network.eval()(images(1))
    torch.testing.assert_close(found, ours(run, average(run, 1), images(1)), atol=1e-5, rtol=1e-5)


def test_files_are_for_whom_umask_says(exported: tuple[Path, str], tmp_path: Path) -> None:
    folder, _ = exported
    (tmp_path / "any").touch()
    modes = {file.name: oct(file.stat().st_mode) for file in folder.iterdir()}

    assert len(modes) >= 8
    assert set(modes.values()) == {oct((tmp_path / "any").stat().st_mode)}, modes
