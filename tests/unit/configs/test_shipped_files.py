"""Every YAML file that is shipped, found by glob: it validates, holds only what differs, and timm can build it."""

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from configs.layers import PACKAGE_DIR
from configs.load import load_config
from configs.schema import Config
from trainer.optimization import build_optimizer, build_scheduler

EXPERIMENTS = sorted((PACKAGE_DIR / "experiment").glob("*.yaml"))
HARDWARE = sorted((PACKAGE_DIR / "hardware").glob("*.yaml"))
IMAGENET = [path for path in EXPERIMENTS if "imagenet" in path.name]


def by_name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def load(*files: Path) -> Config:
    return load_config([str(file) for file in files]).config


def own_values(path: Path) -> dict[str, Any]:
    """Dotted keys and values of a file alone."""

    def walk(tree: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in tree.items():
            found |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return walk(yaml.safe_load(path.read_text(encoding="utf-8")), "")


def test_the_globs_find_the_files() -> None:
    assert {path.stem for path in IMAGENET} >= {f"b{number}_imagenet" for number in range(8)}
    assert {path.stem for path in EXPERIMENTS} >= {"digits", "finetune"}
    assert {path.stem for path in HARDWARE} >= {"cpu", "1x8_h100", "slurm_4x4"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_an_experiment_is_complete_and_valid(path: Path) -> None:
    config = load(path)

    assert config.name == path.stem


@pytest.mark.parametrize("hardware", HARDWARE, ids=by_name)
@pytest.mark.parametrize("experiment", IMAGENET, ids=by_name)
def test_a_hardware_file_is_valid_with_every_imagenet_recipe(experiment: Path, hardware: Path) -> None:
    load(experiment, hardware)


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=by_name)
def test_every_experiment_is_valid_on_a_cpu(experiment: Path) -> None:
    config = load(experiment, PACKAGE_DIR / "hardware/cpu.yaml")

    assert config.trainer.accelerator == "cpu"


@pytest.mark.parametrize("path", HARDWARE, ids=by_name)
def test_a_hardware_file_says_all_about_the_devices_and_nothing_of_the_experiment(path: Path) -> None:
    keys = set(own_values(path))

    assert keys >= {"trainer.accelerator", "trainer.devices", "trainer.num_nodes", "trainer.precision"}
    assert {key.partition(".")[0] for key in keys} <= {"trainer", "data", "deepspeed", "fault", "launch"}
    assert {key for key in keys if key.startswith("data.")} <= {"data.num_workers", "data.prefetch_batches"}


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_an_experiment_holds_only_what_differs(path: Path) -> None:
    """From the defaults, or from its base."""
    values = own_values(path)
    base = values.pop("base", None)
    under = {"data.train_shards": "", "data.val_shards": ""} if base is None else {}
    files = [str(path.parent / base)] if base else []
    before = load_config(files, [f"{key}='{value}'" for key, value in under.items()] + ["name=run"]).config

    same = [key for key, value in values.items() if _value(before, key) == value]

    assert same == []


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_an_experiment_begins_with_source_expectation_hardware_and_command(path: Path) -> None:
    header = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# ")]
    labels = {line[2:].partition(":")[0] for line in header}

    assert labels >= {"Hardware", "Duration", "Command"}
    assert labels & {"Source", "Data"}
    assert labels & {"Published", "Expected"}
    (command,) = (line for line in header if line.startswith("# Command:"))
    assert f"effnet fit --config configs/{by_name(path)}" in command
    (expected,) = (line for line in header if line.startswith(("# Published:", "# Expected:")))
    assert "top-1" in expected


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_the_command_of_an_experiment_makes_a_valid_configuration(path: Path) -> None:
    (command,) = (line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("# Command:"))
    _, _, program, fit, *arguments = command.split()
    flags = [at for at, word in enumerate(arguments) if word == "--config"]
    files = [arguments[at + 1] for at in flags]
    overrides = [word for at, word in enumerate(arguments) if not {at, at - 1} & set(flags)]

    config = load_config(files, overrides).config

    assert (program, fit) == ("effnet", "fit")
    assert config.name == path.stem


def test_the_table_of_recipes_has_every_experiment_with_what_its_header_says() -> None:
    table = (PACKAGE_DIR.parent / "docs/recipes.md").read_text(encoding="utf-8")

    rows = {line.split("|")[1].strip().strip("`"): line for line in table.splitlines() if line.startswith("| `")}
    assert rows.keys() == {path.stem for path in EXPERIMENTS}
    for path in EXPERIMENTS:
        text = path.read_text(encoding="utf-8")
        (command,) = (line for line in text.splitlines() if line.startswith("# Command:"))
        (expected,) = (line for line in text.splitlines() if line.startswith(("# Published:", "# Expected:")))
        assert command.partition(":")[2].strip() in rows[path.stem]
        assert set(re.findall(r"\b\d\d\.\d+", expected)) <= set(re.findall(r"\b\d\d\.\d+", rows[path.stem]))


@pytest.mark.parametrize("path", [*EXPERIMENTS, *HARDWARE], ids=by_name)
def test_the_commands_in_a_file_name_files_that_exist(path: Path) -> None:
    words = path.read_text(encoding="utf-8").split()
    named = [word for word in words if word.startswith("configs/")]

    assert named
    for name in named:
        assert (PACKAGE_DIR.parent / name).is_file()


@pytest.mark.parametrize("path", EXPERIMENTS, ids=by_name)
def test_timm_builds_the_optimizer_and_the_schedule(path: Path) -> None:
    config = load(path)

    optimizer = build_optimizer(nn.Linear(2, 2), config.optimizer)
    build_scheduler(optimizer, config.scheduler, max_epochs=config.trainer.max_epochs, updates_per_epoch=10)

    for name, value in config.optimizer.kwargs.items():
        assert optimizer.defaults[name] == value


def test_the_schedule_of_the_imagenet_recipes_warms_up_and_then_decays_in_steps() -> None:
    config = load(PACKAGE_DIR / "experiment/b0_imagenet.yaml")
    optimizer = build_optimizer(nn.Linear(2, 2), config.optimizer)
    scheduler = build_scheduler(optimizer, config.scheduler, max_epochs=350, updates_per_epoch=10)
    rates = {}
    for step in (0, 25, 50, 71, 72, 3499):
        scheduler.step_update(step)
        rates[step] = optimizer.param_groups[0]["lr"]

    assert rates == pytest.approx(
        {
            0: 1e-6,
            25: 0.064,
            50: 0.128 * 0.97**2,
            71: 0.128 * 0.97**2,
            72: 0.128 * 0.97**3,
            3499: 0.128 * 0.97**145,
        },
        rel=1e-4,
    )


def _value(config: Config, key: str) -> object:
    value: Any = config
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else getattr(value, part)
    return list(value) if isinstance(value, tuple) else value
