import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from rich.console import Console
from safetensors.torch import load_file
from torch import nn

from configs.problems import DataError
from configs.run import RunDirectory
from tests.unit.trainer.runs import average, new_run, train, weights
from trainer.assembly import build_module
from trainer.export import export

Overrides = Callable[..., list[str]]


@pytest.fixture(scope="module")
def unscaled(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run of two steps of a network that timm has under a name of its own."""
    settings = {"model__name": "test_efficientnet", "model__compound_phi": None, "trainer__max_steps": 2}
    return train(new_run(toy_overrides(**settings), tmp_path_factory.mktemp("unscaled")))


def exported(run: RunDirectory, out_dir: Path, *, raw: bool = False) -> tuple[Path, list[str]]:
    """The file, and what was printed."""
    output = io.StringIO()
    file = export(run, checkpoint=None, out_dir=out_dir, raw=raw, console=Console(file=output, width=80))
    return file, output.getvalue().splitlines()


def ours(run: RunDirectory, state: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    network = build_module(run.load_config()).network
    network.load_state_dict(state)
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(images)
    return logits


def theirs(lines: list[str], images: torch.Tensor) -> torch.Tensor:
    """Logits of the network that the printed lines make."""
    names: dict[str, Any] = {"timm": timm, "torch": torch}
    exec("\n".join(lines), names)
    network: nn.Module = names["model"]
    with torch.no_grad():
        logits: torch.Tensor = network.eval()(images)
    return logits


def images(channels: int = 3) -> torch.Tensor:
    return torch.randn(4, channels, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("raw", "state"), [(True, weights), (False, average)], ids=["raw", "ema"])
def test_plain_timm_loads_the_file_and_gives_the_same_logits(
    raw: bool, state: Callable[..., dict[str, torch.Tensor]], unscaled: RunDirectory, tmp_path: Path
) -> None:
    file, lines = exported(unscaled, tmp_path, raw=raw)
    network = timm.create_model("test_efficientnet", num_classes=4, checkpoint_path=str(file))

    with torch.no_grad():
        found = network.eval()(images())
    expected = ours(unscaled, state(unscaled, 2), images())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(theirs(lines[1:], images()), expected, atol=1e-5, rtol=1e-5)
    assert lines[0] == f"{'raw' if raw else 'ema'} weights of step 2: {file}"


def test_raw_and_averaged_weights_differ(unscaled: RunDirectory, tmp_path: Path) -> None:
    raw, ema = (load_file(exported(unscaled, tmp_path / str(raw), raw=raw)[0]) for raw in (True, False))

    assert raw.keys() == ema.keys()
    assert not torch.equal(raw["classifier.weight"], ema["classifier.weight"])


def test_a_scaled_network_is_loaded_as_the_printed_lines_say(trained: RunDirectory, tmp_path: Path) -> None:
    file, lines = exported(trained, tmp_path)

    assert "_gen_efficientnet" in lines[1]
    assert str(file) in lines[2]
    expected = ours(trained, average(trained, 17), images())
    torch.testing.assert_close(theirs(lines[1:], images()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "channels"),
    [
        ({"model__head_hidden_features": 16}, 3),
        ({"model__compound_phi": None, "model__name": "test_efficientnet", "model__head_hidden_features": 16}, 3),
        ({"model__in_chans": 1, "data__augmentation__auto_augment": None}, 1),
        ({"model__bn_eps": 0.01}, 3),
        ({"model__compound_phi": None, "model__name": "test_efficientnet", "model__bn_eps": 0.01}, 3),
        ({"ema__enabled": "false"}, 3),
    ],
    ids=["scaled with a hidden layer", "hidden layer", "grey", "scaled with an epsilon", "epsilon", "no average"],
)
def test_the_printed_lines_hold_for_every_kind_of_network(
    changes: dict[str, object], channels: int, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = train(new_run(toy_overrides(trainer__max_steps=1, **changes), tmp_path))
    _, lines = exported(run, tmp_path / "export")

    state = weights(run, 1) if "ema__enabled" in changes else average(run, 1)
    expected = ours(run, state, images(channels))
    torch.testing.assert_close(theirs(lines[1:], images(channels)), expected, atol=1e-5, rtol=1e-5)


def test_the_description_says_how_images_are_prepared(unscaled: RunDirectory, tmp_path: Path) -> None:
    exported(unscaled, tmp_path)

    about = json.loads((tmp_path / "config.json").read_text())
    assert (about["architecture"], about["num_classes"]) == ("test_efficientnet", 4)
    assert about["pretrained_cfg"] == {
        "input_size": [3, 64, 64],
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    assert about["effnet"] == {"weights": "ema", "step": 2, "run_id": "toy"}


def test_timm_reads_the_folder_as_a_model_of_its_own(unscaled: RunDirectory, tmp_path: Path) -> None:
    exported(unscaled, tmp_path)
    network = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)

    with torch.no_grad():
        found = network.eval()(images())
    torch.testing.assert_close(found, ours(unscaled, average(unscaled, 2), images()), atol=1e-5, rtol=1e-5)
    assert list(timm.data.resolve_model_data_config(network)["input_size"]) == [3, 64, 64]


def test_an_exported_file_is_a_start_for_training(
    unscaled: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    file, _ = exported(unscaled, tmp_path)
    settings = {"model__name": "test_efficientnet", "model__compound_phi": None, "model__checkpoint_path": file}
    config = new_run(toy_overrides(**settings), tmp_path / "runs").load_config()

    state = build_module(config).network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in average(unscaled, 2).items())


def test_a_run_without_a_checkpoint_cannot_be_exported(toy_overrides: Overrides, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no checkpoint that verifies"):
        exported(new_run(toy_overrides(), tmp_path), tmp_path)
