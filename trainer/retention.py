"""Which checkpoints are kept: the last few, the best few, some for ever; and never the last good one removed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from configs.schema import Config


@dataclass(frozen=True)
class Kept:
    """A checkpoint among others.

    Attributes:
        step: Optimizer steps done.
        value: What it reached by the metric that is monitored; None if it was not evaluated, or nothing can be read.
    """

    step: int
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Retention:
    """The rules.

    Attributes:
        last: Newest checkpoints kept.
        best: Best ones kept beside these.
        every_n_steps: The first one at or after each multiple of it is kept for ever; None is none.
        monitor: Metric that says which is better.
    """

    last: int
    best: int = 0
    every_n_steps: int | None = None
    monitor: str = "val/top1"

    @classmethod
    def of(cls, config: Config) -> "Retention":
        """The rules of a configuration."""
        checkpoint = config.checkpoint
        return cls(
            last=checkpoint.keep_last,
            best=checkpoint.keep_best or 0,
            every_n_steps=checkpoint.keep_every_n_steps,
            monitor=config.monitor,
        )

    def removable(self, checkpoints: Sequence[Kept], *, good: int, never: Collection[int] = ()) -> set[int]:
        """Steps of the checkpoints that no rule keeps.

        Counting begins at ``good``, the newest one that verifies: after a resume from before damaged ones, those have
        higher steps than what is saved next, and must not push it out.

        Args:
            checkpoints: All that there are, in any order.
            good: Step of the newest one that verifies.
            never: Steps that are kept whatever the rules say, such as what was just saved.
        """
        old = sorted((kept for kept in checkpoints if kept.step <= good), key=lambda kept: -kept.step)
        kept = {*never, *(each.step for each in old[: self.last])}
        # Of two that are equal, the later.
        ranked = sorted((each for each in old if each.value is not None), key=self._rank)
        kept |= {each.step for each in ranked[: self.best]}
        if self.every_n_steps is not None:
            first = {each.step // self.every_n_steps: each.step for each in old}  # the newest come first, and give way
            kept |= {step for number, step in first.items() if number > 0}
        return {each.step for each in old} - kept

    def best_of(self, checkpoints: Sequence[Kept]) -> int | None:
        """Step of the best one, of two that are equal the later; None if none was evaluated."""
        ranked = sorted((each for each in checkpoints if each.value is not None), key=self._rank)
        return ranked[0].step if ranked else None

    def _rank(self, kept: Kept) -> tuple[float, int]:
        assert kept.value is not None
        return (kept.value if self.monitor.endswith("loss") else -kept.value), -kept.step
