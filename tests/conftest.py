"""Data that tests share: small shards of real image files, made by the project's own writer."""

import io
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from PIL import Image as PilImage

from datamodules.making.shards import Image, write_split

NUM_CLASSES = 4
ROOT = Path(__file__).parents[1]
# The same examples everywhere, and no wall time that a busy machine could miss.
settings.register_profile("effnet", deadline=None, database=None, derandomize=True)
settings.load_profile("effnet")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> object:
    """With `pytest -n 2`, two modules at a time: each stays whole, and one of them has the machine's clusters."""
    from xdist.scheduler import LoadScopeScheduling

    class Modules(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return module_or_clusters(nodeid.partition("::")[0])

    config.option.loadscopereorder = False  # long ones come first as they are
    return Modules(config, log)


@cache
def module_or_clusters(file: str) -> str:
    uses_clusters = re.search(r"tests\.clusters\.\w+ import .*\b(hosts|slurm_cluster)\b", (ROOT / file).read_text())
    return "clusters" if uses_clusters else file


def picture(number: int, size: int = 24, mode: str = "RGB", file_format: str = "PNG") -> bytes:
    """A picture that depends on its number alone, with a pattern of its class (number mod 4)."""
    rng = np.random.default_rng(number)
    rows, columns = np.mgrid[0:size, 0:size]
    wave = np.sin((rows, columns, rows + columns, rows - columns)[number % NUM_CLASSES] * 0.8)
    pixels = (wave[..., None] * 60 + rng.normal(128, 40, (size, size, 3))).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    PilImage.fromarray(pixels).convert(mode).save(buffer, format=file_format)
    return buffer.getvalue()


def pictures(count: int, first: int = 0) -> list[Image]:
    return [Image(f"img_{i:05d}", "png", i % NUM_CLASSES, partial(picture, i)) for i in range(first, first + count)]


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 5 training shards of 26 samples in all but one, and 2 validation shards of 37 samples together."""
    out_dir = tmp_path_factory.mktemp("shards")
    write_split(pictures(129), out_dir, name="toy", split="train", num_shards=5, seed=1)
    write_split(pictures(37, first=1000), out_dir, name="toy", split="validation", num_shards=2, seed=1)
    return out_dir


@pytest.fixture(scope="session")
def toy_overrides(shards: Path) -> Callable[..., list[str]]:
    """Overrides for a tiny network on the toy shards, everything random on; keyword arguments replace or add."""

    def overrides(**changes: object) -> list[str]:
        settings: dict[str, object] = {
            "name": "toy",
            "data.train_shards": f"{shards}/toy-train-*.tar",
            "data.val_shards": f"{shards}/toy-validation-*.tar",
            "data.num_classes": NUM_CLASSES,
            "data.global_batch_size": 16,
            "data.micro_batch_size": 8,
            "data.eval_batch_size": 8,
            "data.num_workers": 0,
            "data.num_lanes": 4,
            "data.shuffle_window_shards": 2,
            "data.image_size": 64,
            "data.augmentation.auto_augment": "rand-m5-mstd0.5",
            "model.compound_phi": -12,
            "loss.mixup_alpha": 0.2,
            "loss.cutmix_alpha": 1.0,
            "optimizer.opt": "sgd",
            "optimizer.lr": 0.02,
            "scheduler.warmup_epochs": 0.5,
            "ema.decay": 0.9,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.precision": "32-true",
            "trainer.max_epochs": 3,
            "trainer.log_every_n_steps": 1,
            "trainer.num_threads": 1,
            "tracking.mode": "disabled",
            "tracking.examples": None,
            "fault.check_every_n_steps": 1,
        }
        settings |= {key.replace("__", "."): value for key, value in changes.items()}
        return [f"{key}={'null' if value is None else value}" for key, value in settings.items()]

    return overrides
