"""timm's squeeze-and-excite layers, with a gradient that lies in memory as their images do."""

from typing import Any

import torch
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn


def keep_layout(network: nn.Module) -> None:
    """Give the squeeze-and-excite layers of an EfficientNet a shorter backward pass; results are the same to the bit.

    torch's gradient of a mean over positions is a whole tensor of images, (N, C, H, W) where these are channels_last,
    and adding one to the other is slow. Here the mean's gradient, (N, C, 1, 1), is added to each position as it is.
    """
    for module in network.modules():
        if type(module) is SqueezeExcite:
            module.__class__ = _SqueezeExcite


class _SqueezeExcite(SqueezeExcite):  # type: ignore[misc]
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            evaluated: torch.Tensor = super().forward(x)
            return evaluated
        x, pooled = _Squeeze.apply(x)
        excited: torch.Tensor = x * self.gate(self.conv_expand(self.act1(self.conv_reduce(pooled))))
        return excited


class _Squeeze(torch.autograd.Function):
    """Images (N, C, H, W) as they are, and their mean over positions (N, C, 1, 1)."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        ctx.positions = x.shape[2] * x.shape[3]
        return x.view_as(x), x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        of_images, of_mean = gradients
        whole: torch.Tensor = of_images + of_mean / ctx.positions
        return whole
