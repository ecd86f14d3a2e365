"""The worst and the best predictions of a split, with the pixels that the network saw, found while it is gone through.

Each rank keeps its own few. Which of them count is known when all ranks' losses are together; then their pixels are
summed over the ranks, of which one has them and the others zeros.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from datamodules.streaming.loaders import Batch

KINDS = ("worst", "best")
"""Of highest, and of lowest loss; of equal ones those of the lowest number."""
SIDE = 224
"""Pixels of a picture's longer side; larger ones are made smaller before they are sent."""


class Examples(NamedTuple):
    """Some samples of a split.

    Attributes:
        samples: (k,) int64, their numbers.
        images: (k, C, h, w) uint8, as the network saw them, at most `SIDE` pixels wide and high.
        there: (k,) bool, whether a rank had the image.
    """

    samples: NDArray[np.int64]
    images: NDArray[np.uint8]
    there: NDArray[np.bool_]


class _Kept(NamedTuple):
    losses: torch.Tensor
    samples: torch.Tensor  # -1 for padding
    images: torch.Tensor


class Extremes:
    """This rank's worst and best samples of one set of weights; nothing waits for the device before the end."""

    def __init__(self, count: int) -> None:
        """Keep ``count`` of each kind."""
        self._count = count
        self._kept: dict[str, _Kept] = {}

    def add(self, losses: torch.Tensor, batch: Batch) -> None:
        """Look at a batch; batches come in the order of their samples.

        Args:
            losses: (N,) float32.
            batch: Of N samples; padding does not count.
        """
        counts = batch.weights > 0
        for kind in KINDS:
            found = _Kept(
                torch.where(counts, losses, -torch.inf if kind == "worst" else torch.inf),
                torch.where(counts, batch.samples, -1),
                batch.images,
            )
            found = self._first(kind, found)
            if kind in self._kept:
                both = zip(self._kept[kind], found, strict=True)
                found = self._first(kind, _Kept(*(torch.cat(pair) for pair in both)))
            self._kept[kind] = found

    def gather(
        self, losses: torch.Tensor, shape: tuple[int, int, int], reduce: Callable[[torch.Tensor], torch.Tensor]
    ) -> dict[str, Examples]:
        """Those of all ranks, by kind. Collective.

        Args:
            losses: (samples,) of the whole split, the same on all ranks.
            shape: (C, H, W) of an image.
            reduce: Sums over the ranks.
        """
        found: dict[str, Examples] = {}
        for kind in KINDS:
            chosen = self._order(kind, losses)
            images = torch.zeros((len(chosen), *shape), dtype=torch.uint8, device=losses.device)
            there = torch.zeros(len(chosen), dtype=torch.int32, device=losses.device)
            if kind in self._kept:
                kept = self._kept[kind]
                same = kept.samples[:, None] == chosen
                images = kept.images[same.int().argmax(0)] * same.any(0)[:, None, None, None]
                there += same.any(0)
            images, there = reduce(_small(images)), reduce(there)
            found[kind] = Examples(chosen.cpu().numpy(), images.cpu().numpy(), there.cpu().numpy() == 1)
        return found

    def _first(self, kind: str, kept: _Kept) -> _Kept:
        order = self._order(kind, kept.losses)
        return _Kept(*(each[order] for each in kept))

    def _order(self, kind: str, losses: torch.Tensor) -> torch.Tensor:
        return losses.sort(stable=True, descending=kind == "worst").indices[: self._count]


def _small(images: torch.Tensor) -> torch.Tensor:
    """(k, C, H, W) uint8, no side of which is longer than `SIDE`."""
    height, width = images.shape[-2:]
    scale = SIDE / max(height, width)
    if scale >= 1 or not len(images):
        return images.contiguous()
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    smaller = interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return smaller.round().clamp(0, 255).to(torch.uint8).contiguous()
