"""Which weights of a run are exported: those of one checkpoint, or the mean over several."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from configs.problems import DataError
from trainer.checkpoint_files import load_weights, read_manifest
from trainer.checkpoints import CheckpointDirectory

State = dict[str, torch.Tensor]


class Weights(NamedTuple):
    """A network's weights, and where they come from.

    Attributes:
        state: Tensors by name, on the CPU.
        kind: ``ema`` or ``raw``.
        steps: Of the checkpoints, the newest first: several where this is their mean.
        metrics: What validation after that checkpoint found, by name; empty of a mean, or where there was none.
    """

    state: State
    kind: str
    steps: tuple[int, ...]
    metrics: dict[str, float]
    statistics_of: int | None = None
    """Training images over which BatchNorm's statistics were estimated anew; None leaves those of the checkpoints."""


def choose_weights(
    directory: CheckpointDirectory, checkpoints: Sequence[Path], *, average: int | None, raw: bool
) -> Weights:
    """Read the weights that a user asked for.

    Args:
        directory: The run's.
        checkpoints: Checkpoint directories, of several the mean; none is the newest.
        average: Take the mean over so many of the newest; None takes one.
        raw: The raw weights, also where there is an average over training steps.

    Raises:
        DataError: If there are too few checkpoints that verify, or they are of different networks.
    """
    paths = list(checkpoints)
    if not paths and average is not None:
        paths = [path for path, _ in zip(directory.verified(), range(average), strict=False)]
        if len(paths) < average:
            raise DataError(f"{directory.path.parent} has {len(paths)} checkpoints that verify, {average} are wanted")
    if not paths:
        paths = [directory.chosen(None)]
    manifests = sorted(((read_manifest(path), path) for path in paths), key=lambda each: -int(each[0]["step"]))
    state, kind = mean_state([path for _, path in manifests], raw=raw)
    newest = manifests[0][0]
    steps = tuple(int(manifest["step"]) for manifest, _ in manifests)
    return Weights(state, kind, steps, newest.get("metrics", {}) if len(paths) == 1 else {})


def mean_state(paths: Sequence[Path], *, raw: bool) -> tuple[State, str]:
    """Mean over checkpoints, summed in float64, BatchNorm's statistics too; counters are those of the first.

    Returns:
        Tensors by name, and whether they are ``raw`` or ``ema`` weights.

    Raises:
        DataError: If they do not have the same tensors, or one lacks averaged weights that the first has.
    """
    kinds = load_weights(paths[0])
    kind = "raw" if raw or "ema" not in kinds else "ema"
    first = kinds[kind]
    if len(paths) == 1:
        return first, kind
    sums = {name: tensor.double() for name, tensor in first.items() if tensor.is_floating_point()}
    shapes = {name: tensor.shape for name, tensor in first.items()}
    for path in paths[1:]:
        state = load_weights(path).get(kind)
        if state is None:
            raise DataError(f"checkpoint {path} has no averaged weights, which {paths[0]} has: --raw takes neither's")
        if {name: tensor.shape for name, tensor in state.items()} != shapes:
            raise DataError(f"checkpoint {path} is of another network than {paths[0]}")
        for name, total in sums.items():
            total += state[name].double()
    return first | {name: (total / len(paths)).to(first[name].dtype) for name, total in sums.items()}, kind
