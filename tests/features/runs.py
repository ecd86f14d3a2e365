"""Runs of a feature under a strategy that have not begun, and the few samples that they train on."""

from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from configs.load import load_config
from configs.run import RunDirectory
from datamodules.making.shards import write_split
from tests.conftest import NUM_CLASSES, pictures
from tests.features.catalogue import SAMPLES, STEPS, TEACHER, VAL_SAMPLES, Feature, settings_of
from tests.features.table import SHARED


def write_shards(out_dir: Path) -> Path:
    """Samples for two steps, a few to validate with, and the weights of a teacher, which has learnt nothing."""
    write_split(pictures(SAMPLES), out_dir, name="few", split="train", num_shards=2, seed=1)
    write_split(pictures(VAL_SAMPLES, first=1000), out_dir, name="few", split="validation", num_shards=1, seed=1)
    torch.manual_seed(7)
    save_file(timm.create_model("test_efficientnet", num_classes=NUM_CLASSES).state_dict(), out_dir / TEACHER)
    return out_dir


def prepare(feature: Feature, strategy: str, *, shards: Path, runs_dir: Path, **changes: object) -> RunDirectory:
    """A run of a feature that has not begun; ``changes`` with double underscores for dots."""
    values: dict[str, object] = {
        "data.train_shards": f"{shards}/few-train-*.tar",
        "data.val_shards": f"{shards}/few-validation-*.tar",
        **SHARED,
        "trainer.accelerator": "cpu",
        "trainer.num_threads": 1,
        "trainer.log_every_n_steps": 1,
        "checkpoint.every_n_steps": STEPS - 1,
        "tracking.mode": "disabled",
        **settings_of(feature, strategy),
        **{key.replace("__", "."): value for key, value in changes.items()},
    }
    values = {key: shards / TEACHER if value == TEACHER else value for key, value in values.items()}
    folder = runs_dir / feature.name.replace(" ", "-").replace(",", "")
    config = load_config([], [*(f"{key}={value}" for key, value in values.items()), f"runs_dir={folder}", "run_id=toy"])
    run = RunDirectory.of(config.config)
    run.freeze(config.config)
    return run
