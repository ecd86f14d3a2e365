"""Every recipe that is shipped, found by glob: its network is built whole, and a smaller one trains two steps by it."""

from pathlib import Path

import pytest
import torch

from configs.layers import PACKAGE_DIR
from configs.load import load_config
from configs.progressive import stage_configs
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.making.shards import write_split
from tests.conftest import NUM_CLASSES
from tests.unit.recordings import recording_samples
from tests.unit.texts import text_samples
from tests.unit.trainer.runs import checkpoint, rows, train, weights
from trainer.network import build_network, image_size

RECIPES = sorted((PACKAGE_DIR / "experiment").glob("*.yaml"))
PARAMETERS = {"s": 21.46, "m": 54.14, "l": 118.5}
"""Millions, of EfficientNetV2."""


def by_stem(path: Path) -> str:
    return path.stem


@pytest.fixture(scope="module")
def toys(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of toy shards, by what their samples are."""
    folders = {"image": shards}
    for modality, samples in (("text", text_samples), ("audio", recording_samples)):
        folder = folders[modality] = tmp_path_factory.mktemp(modality)
        write_split(samples(32), folder, name="toy", split="train", num_shards=4, seed=1)
        write_split(samples(16, first=1000), folder, name="toy", split="validation", num_shards=2, seed=1)
    return folders


def small(path: Path, toys: dict[str, Path], runs_dir: Path) -> Config:
    """A recipe on the toy shards, all of it but the sizes of network, images and batches."""
    recipe = load_config([str(path)]).config
    shards = toys[recipe.data.modality]
    version_2 = "v2" in recipe.model.name
    overrides = [
        f"data.train_shards={shards}/toy-train-*.tar",
        f"data.val_shards={shards}/toy-validation-*.tar",
        "data.prepare=null",
        f"data.num_classes={NUM_CLASSES}",
        "data.global_batch_size=8",
        "data.micro_batch_size=4",
        "data.eval_batch_size=16",
        "data.num_workers=0",
        "data.num_lanes=4",
        f"data.image_size={40 if recipe.data.modality == 'image' else 72}",
        f"data.eval_image_size={48 if recipe.data.eval_image_size else 'null'}",
        f"model.name={'test_efficientnet' if version_2 else 'efficientnet_b0'}",
        f"model.compound_phi={'null' if version_2 else -12}",
        "model.pretrained=false",
        "trainer.accelerator=cpu",
        "trainer.devices=1",
        "trainer.precision=32-true",
        "trainer.max_steps=2",
        "trainer.num_threads=1",
        "trainer.log_every_n_steps=1",
        "tracking.mode=disabled",
        f"runs_dir={runs_dir}",
        "run_id=recipe",
    ]
    config = load_config([str(path)], overrides).config
    stages = tuple(stage.model_copy(update={"image_size": 32}) for stage in config.progressive.stages)
    return config.model_copy(update={"progressive": config.progressive.model_copy(update={"stages": stages})})


@pytest.mark.parametrize("path", RECIPES, ids=by_stem)
def test_a_recipe_trains_two_steps(path: Path, toys: dict[str, Path], tmp_path: Path) -> None:
    config = small(path, toys, tmp_path)
    run = RunDirectory.of(config)
    run.freeze(config)

    train(run)

    assert checkpoint(run, 2)["global_step"] == 2
    assert all(tensor.isfinite().all() for tensor in weights(run, 2).values())
    losses = [float(row["train/loss"]) for row in rows(run) if row.get("train/loss")]
    assert len(losses) == 2
    assert all(0 < loss < 20 for loss in losses)


@pytest.mark.parametrize("path", RECIPES, ids=by_stem)
def test_timm_builds_the_network_of_a_recipe_at_the_sizes_that_it_sees(path: Path) -> None:
    config = load_config([str(path)], ["model.pretrained=false"]).config
    sides = {image_size(each) for each in stage_configs(config)} | {config.data.eval_image_size or image_size(config)}
    channels = config.model.in_chans
    with torch.device("meta"):
        network = build_network(config).eval()

        assert {network(torch.empty(2, channels, side, side)).shape for side in sides} == {(2, config.data.num_classes)}
    if path.stem.startswith("v2_"):
        millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert millions == pytest.approx(PARAMETERS[path.stem[-1]], rel=1e-3)


def test_the_stages_of_version_2_grow_evenly_to_what_they_end_with() -> None:
    """As efficientnetv2/main.py computes them: from 128 pixels, and from magnitude 5 and no mixing, in four stages."""
    for name, side, magnitude, alpha in (("v2_s", 300, 10, 0.0), ("v2_m", 384, 15, 0.2), ("v2_l", 384, 20, 0.5)):
        config = load_config([f"experiment/{name}.yaml"]).config
        stages = stage_configs(config)

        assert [image_size(each) for each in stages] == [int(128 + (side - 128) * n / 4) for n in (1, 2, 3, 4)]
        policies = [each.data.augmentation.auto_augment or "" for each in stages]
        magnitudes = [5 + (magnitude - 5) * n / 3 for n in range(4)]
        assert [int(policy.split("-")[1][1:]) for policy in policies] == [round(each) for each in magnitudes]
        # timm takes a magnitude above 10 for 10 unless told otherwise.
        assert all(f"mmax{round(m)}" in policy for m, policy in zip(magnitudes, policies, strict=True) if m > 10)
        for key in ("mixup_alpha", "cutmix_alpha"):
            expected = [alpha * n / 3 for n in range(4)]
            assert [getattr(each.loss, key) for each in stages] == pytest.approx(expected, abs=5e-5)
        quarters = [350 * n / 4 for n in (1, 2, 3)]
        assert [stage.until_epoch for stage in config.progressive.stages] == pytest.approx(quarters, abs=0.5)
