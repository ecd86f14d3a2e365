"""Whether an exported network computes what the trained one does."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from configs.problems import DataError

BATCH_SIZES = (1, 3)
"""Two, neither of which a graph was traced with: a batch size that has become part of the graph shows."""


class Difference(NamedTuple):
    """The largest difference of two logits, and the largest logit, both absolute."""

    largest: float
    scale: float

    def __str__(self) -> str:
        return f"largest difference {self.largest:.1e}, of logits up to {self.scale:.3g}"


def check_agreement(
    network: nn.Module,
    exported: Callable[[torch.Tensor], torch.Tensor],
    *,
    input_size: tuple[int, int, int],
    tolerance: float,
    what: str,
) -> Difference:
    """Compare logits on images of normally distributed pixels.

    Args:
        network: The trained one, in evaluation mode on the CPU.
        exported: Images (N, C, H, W) float32 to logits (N, num_classes).
        input_size: Channels, height and width.
        tolerance: Largest difference, as a share of the largest logit.
        what: Name of what was exported.

    Raises:
        DataError: If they differ by more.
    """
    generator = torch.Generator().manual_seed(0)
    largest = scale = 0.0
    for size in BATCH_SIZES:
        images = torch.randn(size, *input_size, generator=generator)
        with torch.inference_mode():
            expected = network(images)
        found = exported(images)
        largest = max(largest, float((found - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    difference = Difference(largest, scale)
    if not largest <= tolerance * scale:  # nor NaN
        raise DataError(f"{what} is not written: {difference}; more than --tolerance {tolerance:g} of that")
    return difference
