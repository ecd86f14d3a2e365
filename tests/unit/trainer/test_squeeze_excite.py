"""Squeeze-and-excite with a shorter backward pass: timm's results to the bit, in training and evaluation."""

from typing import Any

import pytest
import timm
import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.unit.trainer.settings import settings
from trainer.network import build_network
from trainer.squeeze_excite import keep_layout

IMAGES, CHANNELS, SIDE = 3, 8, 5


def layers() -> tuple[nn.Module, nn.Module]:
    """Ours, and timm's of the same weights."""
    timms, ours = SqueezeExcite(CHANNELS, act_layer=nn.SiLU), SqueezeExcite(CHANNELS, act_layer=nn.SiLU)
    ours.load_state_dict(timms.state_dict())
    keep_layout(ours)
    return ours, timms


def images() -> torch.Tensor:
    made = torch.randn(IMAGES, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return made.to(memory_format=torch.channels_last).requires_grad_()


class _Divisions(TorchDispatchMode):
    """Sizes of what divisions give."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[torch.Size] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in (torch.ops.aten.div.Tensor, torch.ops.aten.div.Scalar):
            self.sizes.append(result.shape)
        return result


@pytest.mark.parametrize("mixed", [False, True])
def test_gradients_are_timms_and_none_but_the_images_is_of_their_size(mixed: bool) -> None:
    found = []
    for layer in layers():
        given, divisions = images(), _Divisions()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            excited = layer(given * 1.5)
        with divisions:
            excited.float().square().sum().backward()
        gradients = [given.grad, *(parameter.grad for parameter in layer.parameters())]
        assert given.grad is not None
        assert given.grad.is_contiguous(memory_format=torch.channels_last)
        found.append((excited, gradients, divisions.sizes))

    (ours, our_gradients, our_sizes), (timms, their_gradients, their_sizes) = found
    assert torch.equal(ours, timms)
    assert all(torch.equal(one, other) for one, other in zip(our_gradients, their_gradients, strict=True))
    assert our_sizes == [(IMAGES, CHANNELS, 1, 1)]
    assert their_sizes == [(IMAGES, CHANNELS, SIDE, SIDE)]


def test_evaluation_goes_timms_way() -> None:
    ours, timms = (layer.eval() for layer in layers())
    given = images()
    assert torch.equal(ours(given), timms(given))
    assert ours(given).grad_fn is not None
    exported = torch.export.export(ours, (given.detach(),)).module()
    assert torch.equal(exported(given), timms(given))


@pytest.mark.parametrize(("compiled", "timms"), [("null", False), ("default", True)])
def test_a_network_that_compiles_keeps_timms_layers(compiled: str, timms: bool) -> None:
    network = build_network(settings(model__name="efficientnet_b0", trainer__compile=compiled))
    found = {type(module) for module in network.modules() if isinstance(module, SqueezeExcite)}
    assert (found == {SqueezeExcite}) == timms
    assert network.state_dict().keys() == timm.create_model("efficientnet_b0").state_dict().keys()
