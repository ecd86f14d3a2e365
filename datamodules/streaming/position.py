"""Where the data stands after so many optimizer steps, and how a run goes on from where another attempt stood."""

from dataclasses import dataclass, replace

from configs.problems import DataError
from datamodules.indexing.index import ShardIndex
from datamodules.streaming.order import ORDER_VERSION, TrainingOrder

FIRST_FORMAT = ("epoch", "samples_consumed", "seed", "index_hash", "order_version")
"""What every position has, those of old checkpoints too."""


@dataclass(frozen=True)
class Positions:
    """From optimizer steps to positions in the data: a pure function, whatever loaders have handed out.

    Attributes:
        order: Of training samples.
        train_index: Index of the training split.
        val_index: Index of the validation split.
        seen_otherwise: Samples that the steps done have seen beyond those of as many batches of today's size; negative
            where their batches were smaller.
    """

    order: TrainingOrder
    train_index: ShardIndex
    val_index: ShardIndex
    seen_otherwise: int = 0

    def after(self, step: int) -> dict[str, int | str]:
        """Where the data stands after ``step`` optimizer steps: what a checkpoint keeps."""
        order = self.order
        return {
            "epoch": order.epochs_before(step),
            "samples_consumed": (step + order.passed_over) * order.global_batch_size,
            "samples_seen": self.samples_seen(step),
            "batches_passed_over": order.passed_over,
            "seed": order.seed,
            "index_hash": self.train_index.digest,
            "order_version": ORDER_VERSION,
            "val_index_hash": self.val_index.digest,
            "samples_per_epoch": order.samples,
            "global_batch_size": order.global_batch_size,
            "num_lanes": order.num_lanes,
            "shuffle_window_shards": order.window_shards,
            "repeats": order.repeats,
        }

    def samples_seen(self, step: int) -> int:
        """Training samples of all devices in ``step`` optimizer steps, of whatever size their batches were."""
        return step * self.order.global_batch_size + self.seen_otherwise

    def going_on(
        self, saved: dict[str, int | str], step: int, *, next_batch: int | None = None, allow_changes: bool = False
    ) -> tuple["Positions", list[str]]:
        """Positions of a run that goes on after ``step`` optimizer steps: where ``saved`` says, or at ``next_batch``.

        Steps keep their numbers. Where the data or the batches are others, which global batch a step takes moves, so
        that the same share of the epoch is behind it; to within a batch, of which samples rather come again than never.

        Args:
            saved: A position. Of what it lacks, because an older version saved it, nothing is known to differ.
            step: Optimizer steps done.
            next_batch: Global batch that the next step takes, whatever ``saved`` says; None leaves it to that.
            allow_changes: Take other data, or another order.

        Returns:
            The positions, and what differs, in words.

        Raises:
            DataError: If the position names other samples than this run's, and that is not allowed.
        """
        passed_over = int(saved.get("batches_passed_over", 0))
        size = int(saved.get("global_batch_size", self.order.global_batch_size))
        seen = int(saved.get("samples_seen", int(saved["samples_consumed"]) - passed_over * size))
        here = replace(
            self,
            order=replace(self.order, passed_over=passed_over),
            seen_otherwise=seen - step * self.order.global_batch_size,
        )
        listed = here._differing(saved, step)
        if listed and not allow_changes:
            raise DataError(
                f"the checkpoint's data position does not fit this run: {', '.join(listed)}; "
                "resume.allow_changes=true goes on all the same"
            )
        if next_batch is None:
            samples = int(saved["samples_consumed"]) * self.order.samples
            samples //= int(saved.get("samples_per_epoch", self.order.samples))
            next_batch = samples // self.order.global_batch_size
        return replace(here, order=replace(self.order, passed_over=next_batch - step)), listed

    def _differing(self, saved: dict[str, int | str], step: int) -> list[str]:
        return [
            f"{key} was {saved.get(key)}, is {now}"
            for key, now in self.after(step).items()
            if saved.get(key, None if key in FIRST_FORMAT else now) != now
        ]
