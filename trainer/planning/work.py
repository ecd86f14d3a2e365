"""What a micro-batch, a batch of evaluation and the optimizer's step compute, move and keep in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

from trainer.planning.tracker import Kernel


@dataclass(frozen=True, kw_only=True)
class Pass:
    """Forward and backward pass of a micro-batch.

    Attributes:
        images: Samples in it.
        image_size: Their side in pixels.
        network_kernels: How many of the operations are of the network's forward pass; they are the first.
        forward_kernels: How many are of the network's and the teacher's.
        teacher_bytes: The most that the teacher's forward pass has in memory; 0 without one.
        kept_bytes: What is in memory between forward and backward pass, beyond what stays between steps.
        peak_bytes: The most that is in memory at once, beyond what stays between steps.
        kernels: All operations of both.
    """

    images: int
    image_size: int
    network_kernels: int
    forward_kernels: int
    teacher_bytes: int
    kept_bytes: int
    peak_bytes: int
    kernels: Sequence[Kernel]

    @property
    def forward_macs(self) -> int:
        """Multiply-adds of the network's forward pass, of convolutions and matrix products, all images together."""
        return sum(flops for flops, _ in self.kernels[: self.network_kernels]) // 2

    def activation_bytes(self, gradients: int, *, stay: bool) -> int:
        """The most in memory beside the gradients, which are that large, and there before if they ``stay``."""
        return self.peak_bytes if stay else max(self.peak_bytes - gradients, 0)

    @property
    def teacher_kernels(self) -> Sequence[Kernel]:
        """The teacher's operations."""
        return self.kernels[self.network_kernels : self.forward_kernels]

    @property
    def teacher_macs(self) -> int:
        """Multiply-adds of the teacher, all images together."""
        return sum(flops for flops, _ in self.teacher_kernels) // 2

    @property
    def own_kernels(self) -> Sequence[Kernel]:
        """All but the teacher's."""
        return [*self.kernels[: self.network_kernels], *self.kernels[self.forward_kernels :]]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The forward pass of one set of weights over a batch of evaluation.

    Attributes:
        images: Samples in it.
        image_size: Their side in pixels.
        peak_bytes: The most that is in memory at once, beyond what stays between steps.
        kernels: All operations.
    """

    images: int
    image_size: int
    peak_bytes: int
    kernels: Sequence[Kernel]

    @property
    def macs(self) -> int:
        """Multiply-adds, all images together."""
        return sum(flops for flops, _ in self.kernels) // 2


@dataclass(frozen=True, kw_only=True)
class Update:
    """The optimizer's step.

    Attributes:
        state_bytes: What the optimizer keeps.
        state_tensors: Its number of tensors.
        peak_bytes: What it needs beside that while it steps.
        kernels: Its operations.
    """

    state_bytes: int
    state_tensors: int
    peak_bytes: int
    kernels: Sequence[Kernel]
