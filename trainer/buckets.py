"""The pieces in which DDP sums gradients while the backward pass makes others: for training, and for its plan."""

import math

FEWEST, SMALLEST, LARGEST = 8, 2**20, 25 * 2**20
"""Pieces, at least; and bytes of a piece. In one of torch's 25 MiB all gradients of B0 would wait for the last."""


def bucket_count(gradient_bytes: int) -> int:
    """Pieces of about one size that a network's gradients are summed in."""
    return max(min(FEWEST, math.ceil(gradient_bytes / SMALLEST)), math.ceil(gradient_bytes / LARGEST))
