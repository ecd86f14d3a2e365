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
from trainer.evaluation.extremes import Examples, Extremes
from trainer.module import EfficientNetModule

WEIGHTS = {"": "raw", "ema_": "ema"}
"""Sets of weights by the prefix that the module has for them."""
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
        examples: The same of the worst and best samples, by kind.
    """

    def __init__(self, *, examples: int = 0) -> None:
        """Begin nothing yet.

        Args:
            examples: Worst, and as many best, samples that are kept with their images, of each set of weights.
        """
        self.outputs: dict[str, Outputs] = {}
        self.examples: dict[str, dict[str, Examples]] = {}
        self._count = examples
        self._tables: dict[str, torch.Tensor] = {}
        self._extremes: dict[str, Extremes] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        assert isinstance(pl_module, EfficientNetModule)
        samples = len(trainer.datamodule.val_index)  # type: ignore[attr-defined]
        prefixes = list(WEIGHTS) if pl_module.average is not None else [""]
        self.outputs, self.examples = {}, {}
        self._tables = {
            prefix: torch.zeros(samples, COLUMNS, dtype=torch.double, device=pl_module.device) for prefix in prefixes
        }
        self._extremes = {prefix: Extremes(self._count) for prefix in prefixes}

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
        for prefix, logits in logits_by_prefix.items():
            losses = cross_entropy(logits, batch.targets, reduction="none")
            rows = torch.where(batch.weights[:, None] > 0, _rows(logits, losses), 0.0)
            self._tables[prefix].index_add_(0, batch.samples, rows)
            if self._count:
                self._extremes[prefix].add(losses, batch)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Sum over the ranks.

        Raises:
            RuntimeError: If a sample of the index did not come exactly once.
        """
        self.reduce(trainer)
        self.conclude(trainer)

    def reduce(self, trainer: Trainer) -> None:
        """Sum over the ranks: all that they have to say to each other. Collective, whatever came of the batches."""
        datamodule: Any = trainer.datamodule  # type: ignore[attr-defined]
        side = datamodule.eval_image_size

        def summed(tensor: torch.Tensor) -> torch.Tensor:
            reduced = trainer.strategy.reduce(tensor, reduce_op="sum")
            assert isinstance(reduced, torch.Tensor)
            return reduced

        for prefix in self._tables:
            table = self._tables[prefix] = summed(self._tables[prefix])
            if self._count:
                shape = (datamodule.in_chans, side, side)
                self.examples[prefix] = self._extremes[prefix].gather(table[:, 2], shape, summed)
        self._extremes = {}

    def conclude(self, trainer: Trainer) -> None:
        """From sums to outputs.

        Raises:
            RuntimeError: If a sample of the index did not come exactly once.
        """
        labels = trainer.datamodule.val_index.labels  # type: ignore[attr-defined]
        for prefix, table in self._tables.items():
            found = table.cpu().numpy()
            other = int((found[:, 0] != 1).sum())
            if other:
                raise RuntimeError(f"{other} of {len(found)} samples of the index did not come exactly once")
            ranked = found[:, 4 : 4 + int(found[0, 3])].astype(np.int64)
            self.outputs[prefix] = Outputs(labels, ranked, confidences=found[:, 1], losses=found[:, 2])
        self._tables = {}


def _rows(logits: torch.Tensor, losses: torch.Tensor) -> torch.Tensor:
    """(N, classes) float32 and (N,) float32 to (N, COLUMNS) float64."""
    top = logits.topk(min(TOP, logits.shape[1])).indices
    confidences = logits.softmax(1).gather(1, top[:, :1])
    once = torch.ones_like(confidences)
    rows = torch.cat([once, confidences, losses[:, None], once * top.shape[1], top], dim=1).double()
    return torch.nn.functional.pad(rows, (0, COLUMNS - rows.shape[1]))
