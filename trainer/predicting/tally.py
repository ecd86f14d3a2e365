"""What is kept of answers that are written as they come: counts, and the few that are shown in the end."""

from collections.abc import Iterable

from datamodules.streaming.picked import spread
from trainer.predicting.answers import Answer


class Tally:
    """Of answers in the order of the inputs.

    Attributes:
        good: How many there are to readable images.
        bad: How many to others.
        first_error: What ails the first of those.
        first: The first few to readable images.
        sheet: Those to some readable images, evenly spaced over the inputs.
    """

    def __init__(self, images: int, *, first: int, sheet: int) -> None:
        """Of so many images keep so many of the first, and so many over all of them."""
        self.good = self.bad = self._labelled = self._right = 0
        self.first_error: str | None = None
        self.first: list[Answer] = []
        self.sheet: list[Answer] = []
        self._keep_first = first
        self._due = spread(images, sheet).tolist()

    def add(self, answers: Iterable[Answer]) -> None:
        """Count more."""
        for answer in answers:
            if answer.error is not None:
                self.bad += 1
                self.first_error = self.first_error or answer.error
                continue
            self.good += 1
            if answer.label is not None:
                self._labelled += 1
                self._right += answer.labels[0] == answer.label
            if len(self.first) < self._keep_first:
                self.first.append(answer)
            # In place of a bad one comes the next good one.
            if len(self.sheet) < len(self._due) and answer.number >= self._due[len(self.sheet)]:
                self.sheet.append(answer)

    def summary(self, seconds: float) -> str:
        """In a line."""
        text = f"{self.good:,} images, {self.bad:,} bad, {(self.good + self.bad) / seconds:,.0f} images/s"
        if self._labelled:
            text += f", top-1 {self._right / self._labelled:.4f} of {self._labelled:,} with a label"
        return text
