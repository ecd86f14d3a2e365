from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy

from configs.load import load_config
from configs.run import RunDirectory
from datamodules.streaming.loaders import Batch
from datamodules.streaming.randomness import MICRO_BATCH, seed_everything
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, new_run, train, weights
from tests.unit.trainer.settings import settings
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.module import EfficientNetModule

Overrides = Callable[..., list[str]]
TINY = {"model__name": "test_efficientnet", "data__num_classes": 4}


def module(**changes: object) -> EfficientNetModule:
    network = timm.create_model("test_efficientnet", num_classes=4, in_chans=changes.get("model__in_chans", 3))
    return EfficientNetModule(settings(**TINY, **changes), network)


def images(channels: int = 3) -> torch.Tensor:
    return torch.randint(256, (4, channels, 32, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("channels", "mean", "std"),
    [
        (3, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        (1, (0.449,), (0.226,)),
        (4, (0.485, 0.456, 0.406, 0.449), (0.229, 0.224, 0.225, 0.226)),
    ],
)
def test_images_are_normalised_by_imagenets_statistics(
    channels: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> None:
    pixels = images(channels)
    scaled = module(model__in_chans=channels).normalise(pixels)

    shape = (1, channels, 1, 1)
    expected = (pixels.double() / 255 - torch.tensor(mean).double().view(shape)) / torch.tensor(std).double().view(
        shape
    )
    assert scaled.dtype == torch.float32
    torch.testing.assert_close(scaled.double(), expected, atol=1e-6, rtol=1e-6)


def test_images_are_normalised_by_the_statistics_that_are_set() -> None:
    scaled = module(data__mean="[0.5, 0.4, 0.3]", data__std="[0.5, 0.2, 0.1]").normalise(images())

    expected = torch.stack(
        [(images()[:, c] / 255 - m) / s for c, (m, s) in enumerate([(0.5, 0.5), (0.4, 0.2), (0.3, 0.1)])]
    )
    torch.testing.assert_close(scaled, expected.transpose(0, 1), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("channels_last", [True, False])
def test_images_have_the_memory_format_of_the_network(channels_last: bool) -> None:
    scaled = module(trainer__channels_last=str(channels_last).lower()).normalise(images())

    assert scaled.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert scaled.is_contiguous() == (not channels_last)


def test_images_take_the_networks_dtype() -> None:
    assert module().to(torch.bfloat16).normalise(images()).dtype == torch.bfloat16


def test_the_module_has_no_state_but_the_networks() -> None:
    state = module().state_dict()

    assert all(key.startswith("network.") for key in state)


# What a training step computes, in a real Lightning loop


class Spy(Callback):
    """Keeps each micro-batch, what the network was given for it, and the loss."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []
        self.inputs: list[torch.Tensor] = []
        self.losses: list[torch.Tensor] = []
        self.steps: list[int] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        network: Any = pl_module.network

        def keep(_: object, arguments: tuple[torch.Tensor]) -> None:
            if network.training:
                self.inputs.append(arguments[0].clone())

        network.register_forward_pre_hook(keep)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.batches.append(Batch(*(part.clone() for part in batch)))
        self.steps.append(trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.losses.append(outputs["loss"])


def spied(overrides: list[str]) -> tuple[Spy, EfficientNetModule]:
    config = load_config([], overrides).config
    spy = Spy()
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[spy], loggers=[])
    module = build_module(config)
    trainer.fit(module, build_datamodule(config, "cpu"))
    return spy, module


def test_mixup_draws_by_seed_step_and_micro_batch(toy_overrides: Overrides) -> None:
    spy, module = spied(toy_overrides(trainer__max_steps=3, seed=5))

    assert spy.steps == [0, 0, 1, 1, 2, 2]
    assert module._mixup is not None
    mixed = 0
    for number, (batch, seen) in enumerate(zip(spy.batches, spy.inputs, strict=True)):
        seed_everything(5, MICRO_BATCH, number // 2, number % 2)
        plain = module.normalise(batch.images)
        expected, targets = module._mixup(plain.clone(), batch.targets)
        assert torch.equal(seen, expected)
        assert targets.sum(1) == pytest.approx(torch.ones(8))
        mixed += not torch.equal(plain, expected)
    assert mixed == 6


def test_no_two_micro_batches_are_mixed_alike(toy_overrides: Overrides) -> None:
    spy, module = spied(toy_overrides(trainer__max_steps=2, loss__cutmix_alpha=0.0))

    # One ratio for a micro-batch: x + (1 - ratio) * (flipped - x).
    ratios = []
    for batch, seen in zip(spy.batches, spy.inputs, strict=True):
        plain = module.normalise(batch.images)
        difference = (plain.flip(0) - plain).flatten()
        ratios.append(round(float(1 - (seen - plain).flatten() @ difference / (difference @ difference)), 4))
    assert len(set(ratios)) == len(ratios)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_mixing_the_loss_is_cross_entropy_with_label_smoothing(
    smoothing: float, toy_overrides: Overrides
) -> None:
    spy, module = spied(
        toy_overrides(
            trainer__max_steps=1,
            loss__mixup_alpha=0.0,
            loss__cutmix_alpha=0.0,
            loss__label_smoothing=smoothing,
            model__drop_rate=0.0,
            model__drop_path_rate=0.0,
        )
    )

    fresh = build_module(module.config)
    for number in range(2):
        batch = spy.batches[number]
        assert torch.equal(spy.inputs[number], module.normalise(batch.images))
        logits = fresh.network.train()(fresh.normalise(batch.images))
        # Lightning divides by the two micro-batches of a step.
        expected = cross_entropy(logits, batch.targets, label_smoothing=smoothing) / 2
        torch.testing.assert_close(spy.losses[number].detach(), expected, rtol=1e-5, atol=1e-6)


def test_the_weights_after_a_step_do_not_depend_on_accumulation(toy_overrides: Overrides) -> None:
    """Micro-batches of 8 and one of 16 differ in BatchNorm alone; without it they are the same."""
    plain = {
        "model__name": "test_efficientnet_gn",
        "model__compound_phi": None,
        "model__drop_rate": 0.0,
        "model__drop_path_rate": 0.0,
        "loss__mixup_alpha": 0.0,
        "loss__cutmix_alpha": 0.0,
        "trainer__max_steps": 2,
    }
    _, two = spied(toy_overrides(**plain, data__micro_batch_size=8))
    _, one = spied(toy_overrides(**plain, data__micro_batch_size=16))

    for name, tensor in two.state_dict().items():
        torch.testing.assert_close(tensor, one.state_dict()[name], rtol=1e-4, atol=1e-6)


# The frozen backbone


@pytest.fixture(scope="module")
def thawed(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A run whose backbone was frozen for one epoch (9 steps) of two (17 steps); momentum and weight decay are on."""
    overrides = toy_overrides(
        model__freeze_backbone_epochs=1,
        model__head_hidden_features=16,
        trainer__max_epochs=2,
        scheduler__warmup_epochs=0.0,
        optimizer__opt="sgd",
        optimizer__momentum=0.9,
        optimizer__weight_decay=0.1,
        checkpoint__every_n_steps=1,
        checkpoint__keep_last=100,
    )
    return train(new_run(overrides, tmp_path_factory.mktemp("thawed")))


def initial_weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    return build_module(run.load_config()).network.state_dict()


def test_a_frozen_backbone_does_not_move_by_a_bit_and_the_head_does(thawed: RunDirectory) -> None:
    start = initial_weights(thawed)
    head = {name for name in start if name.startswith("classifier.")}

    assert len(head) == 4
    for step in (1, 5, 9):
        assert changed(start, weights(thawed, step)) == head
    assert changed(weights(thawed, 8), weights(thawed, 9)) == head


def test_the_average_of_a_frozen_backbone_does_not_move_either(thawed: RunDirectory) -> None:
    moved = changed(initial_weights(thawed), average(thawed, 9))

    assert moved
    assert all(name.startswith("classifier.") for name in moved)


def test_after_the_frozen_epochs_everything_trains(thawed: RunDirectory) -> None:
    network = build_module(thawed.load_config()).network

    moved = changed(weights(thawed, 9), weights(thawed, 17))
    assert {name for name, _ in network.named_parameters()} <= moved
    assert {name for name, _ in network.named_buffers() if "running_" in name} <= moved


@pytest.mark.parametrize("step", [4, 9])
def test_a_run_resumed_while_frozen_ends_with_the_same_weights(thawed: RunDirectory, step: int, tmp_path: Path) -> None:
    resumed = train(as_killed_after(thawed, tmp_path, step=step), attempt=1)

    assert not changed(weights(thawed, 17), weights(resumed, 17))
