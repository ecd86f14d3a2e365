"""Every recipe has the numbers of its source: read from its settings, and from what timm and torch build of them."""

from typing import Any

import pytest
import torch
from timm.data.auto_augment import RandAugment
from torch import nn

from configs.layers import PACKAGE_DIR
from configs.load import load_config
from configs.progressive import stage_configs
from configs.schema import Config
from datamodules.streaming.transforms import training_transform
from trainer.network import build_network, image_size
from trainer.optimization import build_optimizer

OWN = {"audio_digits", "digits", "finetune", "text_python"}
"""Recipes that no source gives numbers of."""

GOOGLE = {
    "model": "efficientnet_b0",
    "batch": 2048,
    "optimizer": ("RMSpropTF", 0.9, 0.9, 1e-3),  # class, alpha, momentum, epsilon
    "lr_per_256": 0.016,
    "weight_decay": 1e-5,
    "schedule": ("step", 2.4, 0.97),
    "warmup_epochs": 5,
    "epochs": 350,
    "batchnorm": (0.01, 1e-3),  # momentum in PyTorch's sense, epsilon
    "ema": 0.9999,
    "dropout": 0.2,
    "drop_path": 0.2,
    "loss": ("cross_entropy", 0.1),
    "mixing": (0.0, 0.0),
    "policy": "v0",
    "erasing": 0.0,
    "crop": ((0.08, 1.0), "bicubic"),
    "mean": None,  # ImageNet's
    "sizes": (224, 224, 0.875),  # training, evaluation, crop_pct
}
"""github.com/tensorflow/tpu, models/official/efficientnet/{main,efficientnet_builder,preprocessing}.py."""

GOOGLE_V2 = GOOGLE | {
    "model": "tf_efficientnetv2_s",
    "batch": 4096,
    "batchnorm": (0.1, 1e-3),
    "policy": "rand-m10-p1.0",
    "crop": ((0.05, 1.0), "bilinear"),
    "mean": (0.5, 0.5, 0.5),
    "sizes": (300, 384, 1.0),
}
"""github.com/google/automl, efficientnetv2/{hparams,effnetv2_configs,preprocessing}.py."""

NVIDIA = GOOGLE | {
    "batch": 4096,
    "optimizer": ("RMSprop", 0.9, 0.9, 1e-2),
    "lr_per_256": 0.005,
    "schedule": ("cosine", None, None),
    "warmup_epochs": 16,
    "epochs": 400,
    "ema": None,
    "drop_path": 0.0,
    "mixing": (0.2, 0.0),
}
"""github.com/NVIDIA/DeepLearningExamples, PyTorch/Classification/ConvNets: configs.yml, image_classification."""

TIMM = GOOGLE | {
    "batch": 768,
    "warmup_epochs": 3,
    "epochs": 450,
    "batchnorm": (0.1, 1e-5),
    "policy": "rand-m9-mstd0.5",
    "erasing": 0.2,
    "crop": ((0.08, 1.0), "random"),
}
"""github.com/huggingface/pytorch-image-models: docs/training_hparam_examples.md, and at ff421e5e train.py."""

A3 = GOOGLE | {
    "optimizer": ("Lamb", None, None, 1e-6),  # epsilon is timm's
    "lr_per_256": 0.001,
    "weight_decay": 0.02,
    "schedule": ("cosine", None, None),
    "epochs": 100,
    "batchnorm": (0.1, 1e-5),
    "ema": None,
    "dropout": 0.0,
    "drop_path": 0.0,
    "loss": ("bce", 0.0),
    "mixing": (0.1, 1.0),
    "policy": "rand-m6-mstd0.5-inc1",
    "sizes": (160, 224, 0.95),
}
"""Wightman et al., arXiv 2110.00476, table 2."""

SOURCES: dict[str, dict[str, Any]] = {
    "b0_imagenet": GOOGLE,
    "b0_fixres": GOOGLE | {"sizes": (176, 224, 0.875)},
    "b1_imagenet": GOOGLE | {"model": "efficientnet_b1", "sizes": (240, 240, 0.882)},
    "b2_imagenet": GOOGLE | {"model": "efficientnet_b2", "sizes": (260, 260, 0.89), "dropout": 0.3},
    "b3_imagenet": GOOGLE | {"model": "efficientnet_b3", "sizes": (300, 300, 0.904), "dropout": 0.3},
    "b4_imagenet": GOOGLE | {"model": "efficientnet_b4", "sizes": (380, 380, 0.922), "dropout": 0.4},
    "b5_imagenet": GOOGLE | {"model": "efficientnet_b5", "sizes": (456, 456, 0.934), "dropout": 0.4},
    "b6_imagenet": GOOGLE | {"model": "efficientnet_b6", "sizes": (528, 528, 0.943), "dropout": 0.5},
    "b7_imagenet": GOOGLE | {"model": "efficientnet_b7", "sizes": (600, 600, 0.949), "dropout": 0.5},
    "v2_s": GOOGLE_V2,
    "v2_m": GOOGLE_V2
    | {
        "model": "tf_efficientnetv2_m",
        "sizes": (384, 480, 1.0),
        "dropout": 0.3,
        "policy": "rand-m15-mmax15-p1.0",
        "mixing": (0.2, 0.2),
    },
    "v2_l": GOOGLE_V2
    | {
        "model": "tf_efficientnetv2_l",
        "sizes": (384, 480, 1.0),
        "dropout": 0.4,
        "policy": "rand-m20-mmax20-p1.0",
        "mixing": (0.5, 0.5),
    },
    "nvidia_b0": NVIDIA,
    "nvidia_b4": NVIDIA
    | {
        "model": "efficientnet_b4",
        "sizes": (380, 380, 0.922),
        "dropout": 0.4,
        "drop_path": 0.2,
        "lr_per_256": 0.01,
        "weight_decay": 5e-6,
    },
    "timm_b0_ra": TIMM,
    "timm_b2_ra": TIMM | {"model": "efficientnet_b2", "batch": 256, "sizes": (260, 260, 0.875), "dropout": 0.3},
    "fast_b0": A3,
}


def load(name: str) -> Config:
    return load_config([f"experiment/{name}.yaml"], ["model.pretrained=false"]).config


def numbers(config: Config) -> dict[str, Any]:
    """The same numbers of a recipe."""
    data, loss, scheduler = config.data, config.loss, config.scheduler
    optimizer = build_optimizer(nn.Linear(2, 2), config.optimizer)
    with torch.device("meta"):
        network = build_network(config)
    return {
        "model": config.model.name,
        "batch": data.global_batch_size,
        "optimizer": (type(optimizer).__name__, *(optimizer.defaults.get(key) for key in ("alpha", "momentum", "eps"))),
        "lr_per_256": round(optimizer.defaults["lr"] * 256 / data.global_batch_size, 9),
        "weight_decay": max(group["weight_decay"] for group in optimizer.param_groups),
        "schedule": (scheduler.sched, scheduler.decay_epochs, scheduler.decay_rate),
        "warmup_epochs": scheduler.warmup_epochs,
        "epochs": config.trainer.max_epochs,
        "batchnorm": next((each.momentum, each.eps) for each in network.modules() if isinstance(each, nn.BatchNorm2d)),
        "ema": config.ema.decay if config.ema.enabled else None,
        "dropout": config.model.drop_rate,
        "drop_path": config.model.drop_path_rate,
        "loss": (loss.name, loss.label_smoothing),
        "mixing": (loss.mixup_alpha, loss.cutmix_alpha),
        "policy": data.augmentation.auto_augment,
        "erasing": data.augmentation.random_erasing_prob,
        "crop": (data.augmentation.scale, data.interpolation),
        "mean": data.mean,
        "sizes": (image_size(config), data.eval_image_size or image_size(config), data.crop_pct),
    }


def test_the_table_has_every_recipe() -> None:
    assert SOURCES.keys() | OWN == {path.stem for path in (PACKAGE_DIR / "experiment").glob("*.yaml")}


@pytest.mark.parametrize("name", SOURCES)
def test_a_recipe_has_the_numbers_of_its_source(name: str) -> None:
    assert numbers(load(name)) == SOURCES[name]


@pytest.mark.parametrize(("name", "largest"), [("v2_s", 10), ("v2_m", 15), ("v2_l", 20)])
def test_version_2_always_applies_two_operations_of_the_magnitude_of_the_stage(name: str, largest: int) -> None:
    """As distort_image_with_randaugment of efficientnetv2/autoaugment.py does; timm's own probability is 0.5."""
    magnitudes = []
    for stage in stage_configs(load(name)):
        (policy,) = training_transform(stage.data, image_size(stage)).after
        assert isinstance(policy, RandAugment)
        assert policy.num_layers == 2
        assert {operation.prob for operation in policy.ops} == {1.0}
        assert {operation.magnitude_std for operation in policy.ops} == {0}
        # Those that only grow stronger with the magnitude (inc1) are not Google's.
        assert not [operation.name for operation in policy.ops if operation.name.endswith("Increasing")]
        (magnitude,) = {min(operation.magnitude, operation.magnitude_max or 10) for operation in policy.ops}
        magnitudes.append(magnitude)

    assert magnitudes == [round(5 + (largest - 5) * n / 3) for n in range(4)]
