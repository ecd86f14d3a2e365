"""All arithmetic of batch and world sizes, in one place."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class BatchLayout:
    """How one global batch is laid out over ranks and micro-batches.

    The global batch is ``micro_batches`` micro-batches in a fixed order, whatever the world size. Rank r takes a
    contiguous run of ``accumulate_grad_batches`` of them, so that neighbouring lanes of the data stay on one node.

    Attributes:
        global_batch_size: Samples per optimizer step, over all ranks.
        micro_batch_size: Samples that one device takes at once.
        world_size: Number of ranks.
    """

    global_batch_size: int
    micro_batch_size: int
    world_size: int

    def __post_init__(self) -> None:
        if self.global_batch_size % (self.micro_batch_size * self.world_size):
            raise ValueError(
                f"a global batch of {self.global_batch_size} cannot be dealt to {self.world_size} ranks "
                f"in micro-batches of {self.micro_batch_size}"
            )

    @property
    def micro_batches(self) -> int:
        """Micro-batches in a global batch."""
        return self.global_batch_size // self.micro_batch_size

    @property
    def accumulate_grad_batches(self) -> int:
        """Micro-batches that each rank takes per optimizer step."""
        return self.micro_batches // self.world_size

    def micro_batch(self, *, global_rank: int, batch_idx: int) -> int:
        """Index within the global batch of a rank's ``batch_idx``-th micro-batch."""
        return global_rank * self.accumulate_grad_batches + batch_idx % self.accumulate_grad_batches

    def slots(self, micro_batch: int) -> tuple[int, int]:
        """Half-open range of the positions in the global batch that a micro-batch holds."""
        return micro_batch * self.micro_batch_size, (micro_batch + 1) * self.micro_batch_size


def largest_world_size(*, global_batch_size: int, micro_batch_size: int, available: int) -> int:
    """Most ranks, up to ``available``, that split a global batch evenly; at least 1."""
    micro_batches = global_batch_size // micro_batch_size
    return max((n for n in range(1, max(available, 1) + 1) if micro_batches % n == 0), default=1)


def epoch_end_step(epochs: int, *, samples: int, global_batch_size: int) -> int:
    """Optimizer steps after which ``epochs`` whole epochs of ``samples`` samples have been seen."""
    return -(-epochs * samples // global_batch_size)
