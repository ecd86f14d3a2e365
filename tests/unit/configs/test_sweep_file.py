from pathlib import Path
from typing import Any

import pytest
import yaml

from configs.layers import PACKAGE_DIR
from configs.load import load_config
from configs.problems import ConfigError
from configs.sweep_file import Sweep, load_sweep, overrides_of

BASE = ["configs/experiment/digits.yaml"]


def loaded(folder: Path, document: dict[str, Any], *overrides: str) -> Sweep:
    file = folder / "sweep.yaml"
    file.write_text(yaml.safe_dump(document, sort_keys=False))
    return load_sweep(str(file), BASE, overrides)[0]


def problems(folder: Path, document: dict[str, Any], *overrides: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as error:
        loaded(folder, document, *overrides)
    return {problem.key: problem.accepted for problem in error.value.problems}


def grid(**parameters: Any) -> dict[str, Any]:
    return {"method": "grid", "parameters": {key.replace("__", "."): spec for key, spec in parameters.items()}}


def test_every_shipped_sweep_fits_the_recipe_that_its_header_names() -> None:
    files = sorted((PACKAGE_DIR / "sweep").glob("*.yaml"))
    assert len(files) == 2
    for file in files:
        (recipe,) = {word for word in file.read_text().split() if word.startswith("configs/experiment/")}
        sweep, _ = load_sweep(f"configs/sweep/{file.name}", [recipe], ["trainer.max_epochs=90"])
        assert sweep.parameters


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    parameters = {
        "optimizer.lrr": {"values": [0.1]},
        "run_id": {"values": ["a", "b"]},
        "launch.python": {"value": "rm"},
        "loss.mixup_alpha": {"min": 0.5, "max": 0.1},
        "seed": {"value": 1, "values": [2]},
        "ema.decay": {"min": 0.0, "max": 0.9, "distribution": "log_uniform_values"},
        "model.drop_rate": {"min": 0, "max": 0.5},
        "model.drop_path_rate": 0.1,
    }
    document = {"method": "genetic", "run_cap": 0, "project": "mine", "metric": {"name": "accuracy"}}

    found = problems(tmp_path, {**document, "parameters": parameters}, "trainer.max_epoch=3")

    assert found.keys() == {*parameters, *document, "trainer.max_epoch"}
    assert "optimizer.lr" in found["optimizer.lrr"]
    assert "tracking.project" in found["project"]


def test_no_key_of_a_sweep_file_becomes_a_command(tmp_path: Path) -> None:
    document = grid(seed={"values": [1]}) | {"program": "train.py", "command": ["sh", "-c", "touch here"]}
    found = problems(tmp_path, document)
    assert found.keys() == {"program", "command"}
    assert all("effnet runs each trial itself" in accepted for accepted in found.values())


def test_every_value_is_tried_on_the_configuration(tmp_path: Path) -> None:
    found = problems(
        tmp_path,
        grid(
            optimizer__lr={"values": [0.1, -0.1]},
            model__name={"values": ["efficientnet_b0", "; touch here"]},
            trainer__max_epochs={"values": [5, 5.5]},
        ),
    )
    assert found.keys() == {"optimizer.lr", "model.name", "trainer.max_epochs"}
    uniform = {
        "method": "random",
        "parameters": {"trainer.max_epochs": {"distribution": "uniform", "min": 1, "max": 5}},
    }
    assert problems(tmp_path, uniform).keys() == {"trainer.max_epochs"}


def test_combinations_of_a_grid_are_tried_together(tmp_path: Path) -> None:
    sizes = {"data__global_batch_size": {"values": [64, 96]}, "data__micro_batch_size": {"values": [32, 64]}}
    assert problems(tmp_path, grid(**sizes)).keys() == {"data.global_batch_size"}  # 96 in parts of 64
    sizes["data__micro_batch_size"] = {"values": [16, 32]}
    assert loaded(tmp_path, grid(**sizes)).method == "grid"


def test_a_parameter_is_swept_or_given_but_not_both(tmp_path: Path) -> None:
    found = problems(tmp_path, grid(optimizer__lr={"values": [0.1]}), "optimizer.lr=0.2")
    assert found == {"optimizer.lr": "one of the two"}


def test_a_metric_of_averaged_weights_needs_them(tmp_path: Path) -> None:
    document = grid(seed={"values": [1]}) | {"metric": {"name": "val/ema_top1", "goal": "maximize"}}
    assert problems(tmp_path, document, "ema.enabled=false").keys() == {"metric"}


def test_nested_parameters_are_those_of_the_sections(tmp_path: Path) -> None:
    nested = {"optimizer": {"parameters": {"lr": {"values": [1e-3]}, "weight_decay": {"value": 0.0}}}}
    sweep = loaded(tmp_path, {"method": "grid", "parameters": nested})
    assert list(sweep.parameters) == ["optimizer.lr", "optimizer.weight_decay"]


def test_parameters_keep_their_types_as_overrides() -> None:
    chosen = {"optimizer": {"lr": 1e-5}, "model.name": "efficientnet_b1", "seed": 7, "ema.enabled": False}
    chosen |= {"data.augmentation.auto_augment": None, "data.mean": [0.1, 0.2, 0.3]}
    config = load_config(BASE, [*overrides_of(chosen), "model.compound_phi=null"]).config
    assert (config.optimizer.lr, config.model.name, config.seed) == (1e-5, "efficientnet_b1", 7)
    assert (config.ema.enabled, config.data.augmentation.auto_augment) == (False, None)
    assert config.data.mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize("method", ["random", "grid"])
def test_of_a_range_of_billions_the_ends_alone_are_tried(tmp_path: Path, method: str) -> None:
    document = {"method": method, "parameters": {"seed": {"min": 0, "max": 2**31}}}
    assert loaded(tmp_path, document).parameters["seed"]["max"] == 2**31
    beyond = {"method": method, "parameters": {"seed": {"min": -(2**70), "max": 0}}}
    assert problems(tmp_path, beyond).keys() == {"seed"}


@pytest.mark.parametrize("probabilities", [[0.5], [1, -1], [0, 0], ["a", "b"], 1])
def test_probabilities_that_cannot_be_drawn_by_are_refused(tmp_path: Path, probabilities: Any) -> None:
    spec = {"values": [1, 2], "probabilities": probabilities}
    found = problems(tmp_path, {"method": "random", "parameters": {"seed": spec}})
    assert "probabilities" in found["seed"]


@pytest.mark.parametrize("step", [0, -0.1, "a", None])
def test_a_step_that_is_none_is_refused(tmp_path: Path, step: Any) -> None:
    spec = {"distribution": "q_uniform", "min": 0.1, "max": 0.5, "q": step}
    found = problems(tmp_path, {"method": "random", "parameters": {"model.drop_rate": spec}})
    assert "q, a number" in found["model.drop_rate"]
