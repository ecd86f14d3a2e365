"""What a network says of each sample of a split, gathered from all ranks: every sample once, whoever had it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.nn.functional import cross_entropy

from datamodules.streaming.loaders import Batch

TOP = 5
COLUMNS = 4 + TOP
"""Of the table: times seen, confidence, loss, entries of ``ranked`` that there are, and those."""


@dataclass(frozen=True)
class Outputs:
    """What a network says of the samples of a split, in the order of their numbers.

    Attributes:
        labels: (samples,) int64, the class that the shards say.
        ranked: (samples, k) int64, the most likely classes, the first one first; k is 5, or the number of classes.
        confidences: (samples,) float64 in 0..1, softmax of the first.
        losses: (samples,) float64, cross-entropy in nats.
    """

    labels: NDArray[np.int64]
    ranked: NDArray[np.int64]
    confidences: NDArray[np.float64]
    losses: NDArray[np.float64]


class SampleTable(Callback):
    """Keeps a row a sample on the device, from the logits that the module's validation step returns.

    A row has a value on the one rank that had the sample and zeros on the others, so that their sum over the ranks is
    exact, and the same for any number of ranks. Nothing waits for the device before the end.

    Attributes:
        outputs: After a validation, on rank 0, of each set of weights: by the module's prefix, ``""`` or ``ema_``.
    """

    def __init__(self) -> None:
        self.outputs: dict[str, Outputs] = {}
        self._tables: dict[str, torch.Tensor] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.outputs, self._tables = {}, {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Put a batch's rows in; padding has none."""
        logits_by_prefix: Mapping[str, torch.Tensor] = outputs
        samples = len(trainer.datamodule.val_index)  # type: ignore[attr-defined]
        for prefix, logits in logits_by_prefix.items():
            if prefix not in self._tables:
                self._tables[prefix] = torch.zeros(samples, COLUMNS, dtype=torch.double, device=logits.device)
            rows = torch.where(batch.weights[:, None] > 0, _rows(logits, batch.targets), 0.0)
            self._tables[prefix].index_add_(0, batch.samples, rows)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks.

        Raises:
            RuntimeError: If a sample of the index did not come exactly once.
        """
        labels = trainer.datamodule.val_index.labels  # type: ignore[attr-defined]
        for prefix, table in self._tables.items():
            reduced = trainer.strategy.reduce(table, reduce_op="sum")
            assert isinstance(reduced, torch.Tensor)
            found = reduced.cpu().numpy()
            other = int((found[:, 0] != 1).sum())
            if other:
                raise RuntimeError(f"{other} of {len(found)} samples of the index did not come exactly once")
            ranked = found[:, 4 : 4 + int(found[0, 3])].astype(np.int64)
            self.outputs[prefix] = Outputs(labels, ranked, confidences=found[:, 1], losses=found[:, 2])
        self._tables = {}


def _rows(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """(N, classes) float32 and (N,) int64 to (N, COLUMNS) float64."""
    top = logits.topk(min(TOP, logits.shape[1])).indices
    confidences = logits.softmax(1).gather(1, top[:, :1])
    losses = cross_entropy(logits, targets, reduction="none")[:, None]
    once = torch.ones_like(losses)
    rows = torch.cat([once, confidences, losses, once * top.shape[1], top], dim=1).double()
    return torch.nn.functional.pad(rows, (0, COLUMNS - rows.shape[1]))
