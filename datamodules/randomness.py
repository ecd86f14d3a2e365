"""Counter-based randomness: every draw is a function of what it is for, so there is no state to save or lose."""

import random

import numpy as np
import torch

AUGMENTATION, MICRO_BATCH, WEIGHTS = 0, 1, 2
"""What a key is for; the first part of it after the run's seed."""


def seed_everything(*key: int) -> None:
    """Seed Python's, NumPy's and torch's global generators (CPU, and the current CUDA device) from ``key``."""
    state = np.random.SeedSequence(key).generate_state(4, dtype=np.uint64)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]) & 0xFFFFFFFF)
    torch.default_generator.manual_seed(int(state[2]))
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(int(state[3]))
