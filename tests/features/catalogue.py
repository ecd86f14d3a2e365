"""Features of training and strategies, as data: what docs/features.md says of them is checked and trained from here."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

TEACHER = "teacher.safetensors"
"""A file beside the shards that features are trained on."""
TAUGHT = {"distillation.teacher": "test_efficientnet", "distillation.checkpoint_path": TEACHER}
SAMPLES, VAL_SAMPLES, STEPS = 16, 9, 4
"""Of the shards that features are trained on, and the optimizer steps of two epochs of them."""
GLOBAL_BATCH_SIZE = 8
STRATEGIES: dict[str, dict[str, object]] = {
    "single": {"trainer.strategy": "single", "trainer.devices": 1},
    "ddp": {"trainer.strategy": "ddp"},
    **{f"ZeRO {stage}": {"trainer.strategy": "deepspeed", "deepspeed.zero_stage": stage} for stage in (1, 2, 3)},
    "ZeRO 2, offload": {
        "trainer.strategy": "deepspeed",
        "deepspeed.zero_stage": 2,
        "deepspeed.offload_optimizer": "true",
    },
}
"""The columns of the table, and the settings of each."""


@dataclass(frozen=True, kw_only=True)
class Feature:
    """A row of the table.

    Attributes:
        name: As docs/features.md calls it.
        settings: What turns it on, by dotted key.
        leaves_weights: What training ends with beside a run without the feature: the ``same`` weights bit for bit,
            ``others``, or those but for ``rounding``.
        takes_long: Whether it is left to the slow tests.
        accumulates: Whether a device may take several micro-batches a step.
    """

    name: str
    settings: Mapping[str, object]
    leaves_weights: Literal["others", "same", "rounding"] = "others"
    takes_long: bool = False
    accumulates: bool = True


FEATURES = [
    Feature(name="label smoothing", settings={"loss.label_smoothing": 0.3}),
    Feature(name="binary cross entropy", settings={"loss.name": "bce", "loss.bce_target_thresh": 0.2}),
    Feature(
        name="AugMix with Jensen-Shannon divergence",
        settings={
            "loss.name": "jsd",
            "data.augmentation.aug_splits": 3,
            "data.augmentation.auto_augment": "augmix-m3-w3",
        },
    ),
    Feature(name="Mixup", settings={"loss.mixup_alpha": 0.2}),
    Feature(name="CutMix", settings={"loss.cutmix_alpha": 1.0}),
    Feature(name="RandAugment", settings={"data.augmentation.auto_augment": "rand-m5-mstd0.5"}),
    Feature(name="AutoAugment", settings={"data.augmentation.auto_augment": "v0"}),
    Feature(name="TrivialAugment", settings={"data.augmentation.auto_augment": "trivial"}),
    Feature(name="repeated augmentation", settings={"data.augmentation.aug_repeats": 2}),
    Feature(name="random erasing", settings={"data.augmentation.random_erasing_prob": 1.0}),
    Feature(name="clipping by norm", settings={"trainer.gradient_clip_val": 0.1}),
    Feature(
        name="clipping by value",
        settings={"trainer.gradient_clip_val": 0.01, "trainer.gradient_clip_algorithm": "value"},
    ),
    Feature(
        name="adaptive clipping",
        settings={"trainer.gradient_clip_val": 0.01, "trainer.gradient_clip_algorithm": "agc"},
    ),
    Feature(name="RMSpropTF", settings={"optimizer.opt": "rmsproptf", "optimizer.lr": 0.001}),
    Feature(name="AdamW", settings={"optimizer.opt": "adamw", "optimizer.lr": 0.001}),
    Feature(name="Lion", settings={"optimizer.opt": "lion", "optimizer.lr": 0.0001}),
    Feature(name="LAMB", settings={"optimizer.opt": "lamb"}),
    Feature(name="Muon", settings={"optimizer.opt": "muon"}),
    Feature(name="layer-wise learning-rate decay", settings={"optimizer.layer_decay": 0.8}),
    Feature(name="poly schedule", settings={"scheduler.sched": "poly"}),
    Feature(
        name="step schedule",
        settings={"scheduler.sched": "step", "scheduler.decay_epochs": 1, "scheduler.decay_rate": 0.1},
    ),
    Feature(
        name="plateau",
        settings={
            "scheduler.sched": "plateau",
            "scheduler.decay_rate": 0.5,
            "scheduler.patience_validations": 0,
            "scheduler.monitor": "val/loss",
        },
    ),
    Feature(name="distillation, soft", settings={**TAUGHT, "distillation.temperature": 2.0}),
    Feature(name="distillation, hard", settings={**TAUGHT, "distillation.kind": "hard"}),
    Feature(
        name="gradient checkpointing",
        settings={"trainer.gradient_checkpointing": "true"},
        leaves_weights="same",
    ),
    Feature(name="torch.compile", settings={"trainer.compile": "default"}, leaves_weights="rounding", takes_long=True),
    Feature(
        name="CUDA graphs",
        settings={"trainer.compile": "reduce-overhead"},
        leaves_weights="rounding",
        accumulates=False,
    ),
    Feature(name="TF32", settings={"trainer.matmul_precision": "high"}, leaves_weights="rounding"),
    Feature(name="deterministic algorithms", settings={"trainer.deterministic": "true"}, leaves_weights="same"),
    Feature(
        name="architecture by stage",
        settings={"model.stages": "[{channels: 16, kernel_size: 5}, {block: er, channels: 24, stride: 2}]"},
    ),
    Feature(
        name="explicit width and depth",
        settings={"model.compound_phi": "null", "model.width_multiplier": 0.25, "model.depth_multiplier": 0.2},
    ),
    Feature(name="dropout, stochastic depth", settings={"model.drop_rate": 0.3, "model.drop_path_rate": 0.3}),
    Feature(name="accumulation", settings={"data.micro_batch_size": 2}),
    Feature(name="BatchNorm by all ranks' mean", settings={"model.bn_momentum": 0.5}, leaves_weights="others"),
    Feature(name="SyncBN", settings={"trainer.sync_batchnorm": "true"}),
    Feature(
        name="averaged weights",
        settings={"ema.enabled": "true", "ema.decay": 0.9, "ema.use_warmup": "true"},
        leaves_weights="same",
    ),
    Feature(name="contiguous images", settings={"trainer.channels_last": "false"}, leaves_weights="rounding"),
    Feature(name="a frozen backbone", settings={"model.freeze_backbone_epochs": 1}),
    Feature(name="a hidden layer in the head", settings={"model.head_hidden_features": 16}),
    Feature(
        name="progressive learning",
        settings={"progressive.stages": "[{until_epoch: 1, image_size: 32, mixup_alpha: 0.1}]"},
    ),
    Feature(name="evaluation at another size", settings={"data.eval_image_size": 96}, leaves_weights="same"),
    Feature(name="bf16-mixed", settings={"trainer.precision": "bf16-mixed"}),
    Feature(name="16-mixed", settings={"trainer.precision": "16-mixed"}),
    Feature(
        name="averaged weights in bf16-mixed",
        settings={"trainer.precision": "bf16-mixed", "ema.enabled": "true", "ema.decay": 0.9},
    ),
    Feature(name="gradients summed in bf16", settings={"trainer.ddp_comm_hook": "bf16"}),
    Feature(
        name="optimizer in the host's memory", settings={"deepspeed.offload_optimizer": "true"}, leaves_weights="same"
    ),
]
"""The rows of the table."""
PLAIN = Feature(name="none of these", settings={}, leaves_weights="same")
"""What the others are compared with."""


def settings_of(feature: Feature, strategy: str) -> dict[str, object]:
    """What a run of a feature under a strategy has beside the settings that all of them share."""
    at_once = {} if feature.accumulates or strategy != "single" else {"data.micro_batch_size": GLOBAL_BATCH_SIZE}
    return {**STRATEGIES[strategy], **at_once, **feature.settings}
