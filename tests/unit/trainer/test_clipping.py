"""What bounds the gradient before an optimizer step."""

from collections.abc import Callable

import pytest
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from timm.utils import adaptive_clip_grad
from torch.optim import Optimizer

from configs.load import load_config
from tests.unit.trainer.runs import ALONE
from trainer.assembly import build_datamodule, build_module, build_trainer

Overrides = Callable[..., list[str]]
AGC = {"trainer__gradient_clip_algorithm": "agc", "trainer__gradient_clip_val": 0.01}


class Gradients(Callback):
    """The gradients of each step and the weights that they are of, before and after clipping."""

    def __init__(self) -> None:
        self.before: list[dict[str, torch.Tensor]] = []
        self.weights: list[dict[str, torch.Tensor]] = []
        self.after: list[dict[str, torch.Tensor]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        named = dict(pl_module.network.named_parameters())
        self.before.append({name: parameter.grad.clone() for name, parameter in named.items()})
        self.weights.append({name: parameter.detach().clone() for name, parameter in named.items()})

    def on_before_zero_grad(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        named = dict(pl_module.network.named_parameters())
        if all(parameter.grad is not None for parameter in named.values()):
            self.after.append({name: parameter.grad.clone() for name, parameter in named.items()})


def clipped(overrides: list[str]) -> Gradients:
    config = load_config([], overrides).config
    gradients = Gradients()
    trainer = build_trainer(config, ALONE, "cpu", callbacks=[gradients], loggers=[])
    trainer.fit(build_module(config), build_datamodule(config, "cpu"))
    return gradients


@pytest.mark.parametrize("hidden", ["null", 16])
def test_agc_is_timms_and_leaves_the_classifier(hidden: str | int, toy_overrides: Overrides) -> None:
    found = clipped(toy_overrides(trainer__max_steps=3, model__head_hidden_features=hidden, **AGC))

    assert len(found.before) == 3
    differing = set()
    # Lightning sets gradients to zero before the next step's first micro-batch, so the last step's are not seen.
    for before, at, after in zip(found.before, found.weights, found.after, strict=False):
        for name, gradient in before.items():
            parameter = torch.nn.Parameter(at[name])
            parameter.grad = gradient.clone()
            if not name.startswith("classifier."):
                adaptive_clip_grad([parameter], clip_factor=0.01)
            assert torch.equal(after[name], parameter.grad), name
            differing |= {name} if not torch.equal(gradient, parameter.grad) else set()
    assert len(found.after) >= 2
    assert "conv_stem.weight" in differing
    assert not any(name.startswith("classifier.") for name in differing)


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lightnings_algorithms_are_as_they_were(algorithm: str, toy_overrides: Overrides) -> None:
    clip = {"trainer__gradient_clip_val": 0.01, "trainer__gradient_clip_algorithm": algorithm}
    found = clipped(toy_overrides(trainer__max_steps=2, **clip))

    gradients = torch.cat([gradient.flatten() for gradient in found.after[0].values()])
    size = gradients.norm() if algorithm == "norm" else gradients.abs().max()
    assert float(size) == pytest.approx(0.01, rel=1e-3)
