"""What rows of metrics have beside training's own sums: parts whose numbers share the row's one reduction."""

from collections.abc import Sequence
from typing import Protocol

from pytorch_lightning import Trainer


class RowPart(Protocol):
    """Some columns."""

    def start(self, trainer: Trainer) -> None:
        """Training begins."""

    def values(self, trainer: Trainer) -> list[float]:
        """This rank's numbers since the last row; on every rank as many."""

    def row(self, trainer: Trainer, sums: Sequence[float]) -> dict[str, float]:
        """The columns, from the sums of those numbers over all ranks."""


class RowParts:
    """Several as one."""

    def __init__(self, parts: Sequence[RowPart]) -> None:
        self._parts = parts
        self._sizes: list[int] = []

    def start(self, trainer: Trainer) -> None:
        """Training begins."""
        for part in self._parts:
            part.start(trainer)

    def values(self, trainer: Trainer) -> list[float]:
        """Those of all parts, one after the other."""
        values = [part.values(trainer) for part in self._parts]
        self._sizes = [len(each) for each in values]
        return [value for each in values for value in each]

    def row(self, trainer: Trainer, sums: Sequence[float]) -> dict[str, float]:
        """The columns of all parts."""
        columns: dict[str, float] = {}
        first = 0
        for part, size in zip(self._parts, self._sizes, strict=True):
            columns |= part.row(trainer, sums[first : first + size])
            first += size
        return columns
