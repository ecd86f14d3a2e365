"""The training of a run beside a plain loop of PyTorch that calls timm's own functions, on the same batches."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV3, adaptive_clip_grad
from torch import nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from configs.load import load_config
from datamodules.streaming.loaders import Batch
from datamodules.streaming.randomness import MICRO_BATCH, seed_everything
from tests.conftest import NUM_CLASSES
from tests.unit.trainer.runs import ALONE
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics
from trainer.ema import WeightAverage

Overrides = Callable[..., list[str]]
STEPS, GLOBAL_BATCH, EPOCHS, SAMPLES, SEED = 20, 16, 3, 129, 3
TINY = "test_efficientnet"
OURS: dict[str, object] = {
    "seed": SEED,
    "data.global_batch_size": GLOBAL_BATCH,
    "data.micro_batch_size": GLOBAL_BATCH,
    "data.image_size": 32,
    "model.compound_phi": None,
    "model.drop_rate": 0.2,
    "model.drop_path_rate": 0.2,
    "loss.mixup_alpha": 0.0,
    "loss.cutmix_alpha": 0.0,
    "trainer.max_epochs": EPOCHS,
    "trainer.max_steps": STEPS,
}


class Recorder(Callback):
    """Keeps each micro-batch as it came, and its loss."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(Batch(*(part.clone() for part in batch)))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(float(outputs["loss"]) * trainer.accumulate_grad_batches)


def plain_loop(
    network: nn.Module,
    batches: list[Batch],
    *,
    optimizer: dict[str, Any],
    scheduler: dict[str, Any],
    ema: dict[str, Any],
    loss: nn.Module,
    mixup: dict[str, Any] | None = None,
    erasing: dict[str, Any] | None = None,
    clip: Callable[[nn.Module], object] = lambda network: None,
) -> tuple[list[float], nn.Module]:
    """Losses of the micro-batches, and the averaged network; ``network`` itself is trained."""
    accumulate = len(batches) // STEPS
    built = create_optimizer_v2(network, **optimizer)
    updates = SAMPLES / GLOBAL_BATCH
    schedule, _ = create_scheduler_v2(
        built, num_epochs=EPOCHS, step_on_epochs=False, updates_per_epoch=updates, **scheduler
    )
    average = ModelEmaV3(network, **ema)
    mix = Mixup(num_classes=NUM_CLASSES, **mixup) if mixup is not None else None
    erase = RandomErasing(device="cpu", **erasing) if erasing is not None else None
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) * 255 for v in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    losses = []
    network.train()
    schedule.step_update(0)
    for number, batch in enumerate(batches):
        step, micro_batch = divmod(number, accumulate)
        seed_everything(SEED, MICRO_BATCH, step, micro_batch)
        images, targets = batch.images.float().sub(mean).div(std), batch.targets
        if erase is not None:
            images = erase(images)
        if mix is not None:
            images, targets = mix(images, targets)
        value = loss(network(images.contiguous(memory_format=torch.channels_last)), targets)
        losses.append(float(value))
        (value / accumulate).backward()
        if micro_batch == accumulate - 1:
            clip(network)
            built.step()
            built.zero_grad()
            schedule.step_update(step + 1)
            average.update(network, step=step + 1)
    return losses, average.module


CASES: dict[str, tuple[dict[str, object], dict[str, Any], dict[str, Any]]] = {
    # Name: settings; what timm builds the network from; what the plain loop is told.
    "google": (
        {
            "model.name": "tf_efficientnet_b0",
            "model.bn_momentum": 0.01,
            "model.bn_eps": 0.001,
            "optimizer.opt": "rmsproptf",
            "optimizer.lr": 0.002,
            "optimizer.weight_decay": 1e-5,
            "optimizer.kwargs": "{alpha: 0.9, eps: 0.001}",
            "scheduler.sched": "step",
            "scheduler.decay_epochs": 0.3,
            "scheduler.decay_rate": 0.97,
            "ema.decay": 0.9999,
        },
        {"model_name": "tf_efficientnet_b0", "bn_momentum": 0.01, "bn_eps": 0.001},
        {
            "optimizer": {"opt": "rmsproptf", "lr": 0.002, "weight_decay": 1e-5, "alpha": 0.9, "eps": 0.001},
            "scheduler": {"sched": "step", "decay_epochs": 0.3, "decay_rate": 0.97},
            "ema": {"decay": 0.9999},
            "loss": LabelSmoothingCrossEntropy(0.1),
        },
    ),
    "sgd, cosine, Mixup and CutMix, norm clipped, growing EMA": (
        {
            "loss.mixup_alpha": 0.2,
            "loss.cutmix_alpha": 1.0,
            "optimizer.opt": "sgd",
            "optimizer.lr": 0.05,
            "optimizer.weight_decay": 1e-4,
            "scheduler.sched": "cosine",
            "ema.use_warmup": "true",
            "ema.decay": 0.999,
            "trainer.gradient_clip_val": 1.0,
        },
        {},
        {
            "optimizer": {"opt": "sgd", "lr": 0.05, "weight_decay": 1e-4},
            "scheduler": {"sched": "cosine"},
            "ema": {"decay": 0.999, "use_warmup": True},
            "loss": SoftTargetCrossEntropy(),
            "mixup": {"mixup_alpha": 0.2, "cutmix_alpha": 1.0, "label_smoothing": 0.1},
            "clip": lambda network: clip_grad_norm_(network.parameters(), 1.0),
        },
    ),
    "adamw, layer-wise decay, BCE, Mixup of elements": (
        {
            "loss.name": "bce",
            "loss.mixup_alpha": 0.1,
            "loss.mixup_mode": "elem",
            "optimizer.opt": "adamw",
            "optimizer.lr": 0.003,
            "optimizer.weight_decay": 0.05,
            "optimizer.layer_decay": 0.75,
            "scheduler.sched": "cosine",
            "scheduler.min_lr": 1e-5,
        },
        {},
        {
            "optimizer": {"opt": "adamw", "lr": 0.003, "weight_decay": 0.05, "layer_decay": 0.75},
            "scheduler": {"sched": "cosine", "min_lr": 1e-5},
            "ema": {"decay": 0.9},
            "loss": BinaryCrossEntropy(0.1),
            "mixup": {"mixup_alpha": 0.1, "mode": "elem", "label_smoothing": 0.1},
        },
    ),
    "lamb, poly, CutMix of pairs, erasing": (
        {
            "data.augmentation.random_erasing_prob": 0.5,
            "loss.cutmix_alpha": 1.0,
            "loss.mixup_mode": "pair",
            "loss.label_smoothing": 0.0,
            "optimizer.opt": "lamb",
            "optimizer.lr": 0.01,
            "optimizer.weight_decay": 0.02,
            "scheduler.sched": "poly",
            "scheduler.decay_rate": 0.5,
        },
        {},
        {
            "optimizer": {"opt": "lamb", "lr": 0.01, "weight_decay": 0.02},
            "scheduler": {"sched": "poly", "decay_rate": 0.5},
            "ema": {"decay": 0.9},
            "loss": SoftTargetCrossEntropy(),
            "mixup": {"mixup_alpha": 0.0, "cutmix_alpha": 1.0, "mode": "pair", "label_smoothing": 0.0},
            "erasing": {"probability": 0.5, "mode": "pixel"},
        },
    ),
    "adam, constant, values clipped": (
        {
            "loss.label_smoothing": 0.0,
            "optimizer.opt": "adam",
            "optimizer.lr": 0.001,
            "optimizer.weight_decay": 0.0,
            "scheduler.sched": "constant",
            "scheduler.warmup_epochs": 1.0,
            "trainer.gradient_clip_val": 0.01,
            "trainer.gradient_clip_algorithm": "value",
        },
        {},
        {
            "optimizer": {"opt": "adam", "lr": 0.001, "weight_decay": 0.0},
            # timm's create_scheduler_v2 has none that is constant after a warm-up: steps of factor 1 are.
            "scheduler": {"sched": "step", "decay_epochs": 1, "decay_rate": 1.0, "warmup_epochs": 1.0},
            "ema": {"decay": 0.9},
            "loss": nn.CrossEntropyLoss(),
            "clip": lambda network: clip_grad_value_(network.parameters(), 0.01),
        },
    ),
    "nadamw, tanh, AGC": (
        {
            "optimizer.opt": "nadamw",
            "optimizer.lr": 0.002,
            "optimizer.weight_decay": 0.05,
            "scheduler.sched": "tanh",
            "trainer.gradient_clip_val": 0.02,
            "trainer.gradient_clip_algorithm": "agc",
        },
        {},
        {
            "optimizer": {"opt": "nadamw", "lr": 0.002, "weight_decay": 0.05},
            "scheduler": {"sched": "tanh"},
            "ema": {"decay": 0.9},
            "loss": LabelSmoothingCrossEntropy(0.1),
            "clip": lambda network: adaptive_clip_grad(
                [p for name, p in network.named_parameters() if not name.startswith("classifier")], 0.02
            ),
        },
    ),
    "lion, cosine, two micro-batches, no BatchNorm": (
        {
            "model.name": "test_efficientnet_gn",
            "data.micro_batch_size": GLOBAL_BATCH // 2,
            "loss.mixup_alpha": 0.2,
            "optimizer.opt": "lion",
            "optimizer.lr": 0.0005,
            "optimizer.weight_decay": 0.01,
            "scheduler.sched": "cosine",
        },
        {"model_name": "test_efficientnet_gn"},
        {
            "optimizer": {"opt": "lion", "lr": 0.0005, "weight_decay": 0.01},
            "scheduler": {"sched": "cosine"},
            "ema": {"decay": 0.9},
            "loss": SoftTargetCrossEntropy(),
            "mixup": {"mixup_alpha": 0.2, "label_smoothing": 0.1},
        },
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_twenty_steps_equal_those_of_a_plain_loop_of_timms_functions(case: str, toy_overrides: Overrides) -> None:
    changes, model, plain = CASES[case]
    config = load_config([], toy_overrides(**OURS | {"model.name": TINY} | changes)).config
    recorder, averaging = Recorder(), WeightAverage(config.ema)
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[BatchNormStatistics(), averaging, recorder], loggers=[])
    module = build_module(config)
    network = timm.create_model(
        **{"model_name": TINY} | model, num_classes=NUM_CLASSES, drop_rate=0.2, drop_path_rate=0.2
    ).to(memory_format=torch.channels_last)
    network.load_state_dict(module.network.state_dict())
    initial = deepcopy(network.state_dict())

    trainer.fit(module, build_datamodule(config, "cpu"))
    plain["optimizer"].setdefault("momentum", 0.9)
    plain["scheduler"].setdefault("warmup_epochs", 0.5)
    plain["scheduler"].setdefault("warmup_lr", 1e-6)
    plain["scheduler"].setdefault("min_lr", 0.0)
    losses, average = plain_loop(network, recorder.batches, **plain)

    assert trainer.global_step == STEPS
    torch.testing.assert_close(torch.tensor(recorder.losses), torch.tensor(losses), rtol=1e-5, atol=1e-5)
    for ours, theirs in ((module.network, network), (averaging.network, average)):
        for name, tensor in theirs.state_dict().items():
            torch.testing.assert_close(
                ours.state_dict()[name], tensor, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
            )
    moved = sum(not torch.equal(initial[name], parameter) for name, parameter in network.named_parameters())
    assert moved == len(list(network.parameters()))
