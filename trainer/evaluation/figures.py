"""From what a network says of each sample to figures: accuracy in all and by class, calibration, confusion."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torchmetrics.functional.classification import binary_calibration_error, multiclass_confusion_matrix

from trainer.evaluation.samples import Outputs

BINS = 15
"""Of confidence, as wide as each other: Guo et al., On Calibration of Modern Neural Networks, ICML 2017."""


@dataclass(frozen=True)
class Reliability:
    """Accuracy by confidence.

    Attributes:
        samples: (BINS,) int64, samples whose confidence is in the bin.
        top1: (BINS,) float64, share of those that are right; NaN without any.
        confidence: (BINS,) float64, their mean; NaN without any.
    """

    samples: NDArray[np.int64]
    top1: NDArray[np.float64]
    confidence: NDArray[np.float64]


@dataclass(frozen=True)
class RealFigures:
    """By labels from elsewhere, of which a sample may have several, any of them right; without any it does not count.

    Attributes:
        samples: Those that count.
        top1: Share of those whose most likely class is among their labels.
        top5: Share of those of whom one of the five most likely classes is.
    """

    samples: int
    top1: float
    top5: float


@dataclass(frozen=True)
class Figures:
    """What there is to say of one set of weights on one split.

    Attributes:
        samples: All of the split.
        top1: Share of samples whose most likely class is the label.
        top5: Share of those of whom one of the five most likely classes is.
        loss: Mean cross-entropy in nats.
        calibration_error: Expected calibration error, in 0..1: mean distance between confidence and accuracy of bins.
        confusion: (classes, classes) int64, samples by label (rows) and most likely class (columns).
        reliability: The bins.
        real: By other labels, where there are some.
    """

    samples: int
    top1: float
    top5: float
    loss: float
    calibration_error: float
    confusion: NDArray[np.int64]
    reliability: Reliability
    real: RealFigures | None

    @property
    def class_samples(self) -> NDArray[np.int64]:
        """(classes,) samples with that label."""
        samples: NDArray[np.int64] = self.confusion.sum(1)
        return samples

    @property
    def class_top1(self) -> NDArray[np.float64]:
        """(classes,) share of a class's samples that are right; NaN for a class without any."""
        right, samples = np.diag(self.confusion), self.class_samples
        found: NDArray[np.float64] = np.divide(right, samples, out=np.full(len(right), np.nan), where=samples > 0)
        return found

    @property
    def balanced_top1(self) -> float:
        """Mean of the accuracies of all classes that have samples."""
        return float(np.nanmean(self.class_top1))

    def most_confused(self, count: int) -> list[tuple[int, int, int]]:
        """(label, class taken for it, samples) of the commonest mistakes, the commonest first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:count]
        pairs = ((*divmod(int(place), len(wrong)), int(wrong.flat[place])) for place in order)
        return [pair for pair in pairs if pair[2]]


def figures(outputs: Outputs, *, num_classes: int, real: Sequence[frozenset[int]] | None = None) -> Figures:
    """All figures of a set of weights.

    Args:
        outputs: Of all samples.
        num_classes: That the network tells apart.
        real: Other labels of each sample, by its number.
    """
    ranked, labels = outputs.ranked, outputs.labels
    right = ranked == labels[:, None]
    confusion = multiclass_confusion_matrix(torch.tensor(ranked[:, 0]), torch.tensor(labels), num_classes)
    # One that is 1 belongs to the last bin, for which torchmetrics has one more.
    confidences = torch.tensor(outputs.confidences).clamp(max=1 - 1e-12)
    error = binary_calibration_error(confidences, torch.tensor(right[:, 0]).long(), n_bins=BINS, norm="l1")
    return Figures(
        samples=len(labels),
        top1=float(right[:, 0].mean()),
        top5=float(right.any(1).mean()),
        loss=float(outputs.losses.mean()),
        calibration_error=float(error),
        confusion=confusion.numpy(),
        reliability=_reliability(confidences, right[:, 0]),
        real=None if real is None else _real_figures(ranked, real),
    )


def _reliability(confidences: torch.Tensor, right: NDArray[np.bool_]) -> Reliability:
    edges = torch.linspace(0, 1, BINS + 1, dtype=confidences.dtype)
    places = (torch.bucketize(confidences, edges, right=True) - 1).numpy()
    counts = np.bincount(places, minlength=BINS)
    top1, confidence = (
        np.divide(
            np.bincount(places, weights=values, minlength=BINS), counts, out=np.full(BINS, np.nan), where=counts > 0
        )
        for values in (right, confidences.numpy())
    )
    return Reliability(counts, top1, confidence)


def _real_figures(ranked: NDArray[np.int64], real: Sequence[frozenset[int]]) -> RealFigures:
    found = [[each in labels for each in row] for row, labels in zip(ranked.tolist(), real, strict=True) if labels]
    count = len(found)
    if not count:
        return RealFigures(0, np.nan, np.nan)
    return RealFigures(count, sum(row[0] for row in found) / count, sum(map(any, found)) / count)
