"""What a training needs of a device's memory, by part and by micro-batch, and the size of its checkpoints."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import torch

from configs.schema import Config
from trainer.planning.step import FakeTraining
from trainer.planning.work import Evaluation, Pass, Update
from trainer.undoing import undoes

FP32: Final = 4
ZERO_BUCKET: Final = 200_000_000
"""Elements of each of DeepSpeed's buffers for reductions, by Lightning's default; two of them under ZeRO 1 and 2."""
RESERVED_BYTES: Final = 2**30
RESERVED_SHARE: Final = 0.05
"""Of a GPU, for the CUDA context, NCCL, cuDNN's workspaces and holes between tensors: an assumption."""
TENSOR_OVERHEAD_BYTES: Final = 310
"""Of a tensor in a checkpoint: its name, its entry in the archive twice, padding (a checkpoint of 421 tensors)."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of one device, where they are the most in a step.

    Attributes:
        weights: Parameters, as the forward pass reads them.
        buffers: BatchNorm's running statistics.
        gradients: Under DDP the buckets, which the gradients are views of.
        optimizer: What the optimizer keeps; under DeepSpeed the fp32 master weights too.
        average: The moving average of weights and buffers, in fp32.
        communication: Buffers of DeepSpeed.
        undo: Copies of weights, buffers, average and optimizer, from which a bad step is undone.
        teacher: Weights and statistics of the teacher that is learnt from.
        activations: What forward and backward pass keep beyond all that, or the optimizer's step if that is more.
        activations_per_image: What each further image of a micro-batch adds.
        evaluation: What evaluation keeps beyond all that; it takes turns with the activations.
        total: The sum of all parts, of activations and evaluation the larger.
        totals: The same for other micro-batches, by their size.
        usable: Of the device's memory, what there is for these; None where the device is not described.
        largest_micro_batch: Samples that fit into that in training; None as above.
        fitting_micro_batch: The most of these that deal out the global batch; None also where none do.
    """

    weights: int
    buffers: int
    gradients: int
    optimizer: int
    average: int
    communication: int
    undo: int
    teacher: int
    activations: int
    activations_per_image: int
    evaluation: int
    total: int
    totals: dict[int, int]
    usable: int | None
    largest_micro_batch: int | None
    fitting_micro_batch: int | None

    @property
    def training(self) -> int:
        """The total without evaluation."""
        return self.total - max(self.activations, self.evaluation) + self.activations

    @property
    def fits(self) -> bool | None:
        """Whether the configuration's micro-batch and evaluation do; None where the device is not described."""
        return None if self.usable is None else self.total <= self.usable


def gradients_stay(config: Config, world_size: int) -> bool:
    """Whether all gradients are in memory throughout: DDP's buckets are, and those that accumulate."""
    data = config.data
    return world_size > 1 or data.global_batch_size > data.micro_batch_size


def plan_memory(
    config: Config,
    training: FakeTraining,
    passes: tuple[Pass, Pass],
    update: Update,
    *,
    world_size: int,
    evaluation: Evaluation | None = None,
) -> Memory:
    """Memory of each device.

    Args:
        config: Of the run; `launch.hardware.memory_gb` says what there is.
        training: Network and optimizer.
        passes: Of two micro-batches, the configured one first, in the stage of training that needs the most.
        update: The optimizer's step.
        world_size: Devices in all.
        evaluation: A batch of it; None leaves it out.
    """
    parameters = sum(parameter.numel() for parameter in training.network.parameters())
    stage, sharded = config.deepspeed.zero_stage or 0, config.trainer.strategy == "deepspeed"
    working = 2 if sharded and config.trainer.precision != "32-true" else FP32
    state = round(update.state_bytes * FP32 / working)  # DeepSpeed keeps it in fp32, beside master weights
    buffers = _bytes_of(training.network.buffers())
    # Under ZeRO 3 DeepSpeed leaves up to 10^9 gathered weights in place, which is all of any EfficientNet.
    weights = working * parameters + (working * parameters // world_size if stage == 3 else 0)
    gradients = working * parameters // (world_size if stage >= 2 else 1)
    optimizer = (FP32 * parameters + state) // world_size if sharded else state
    if config.deepspeed.offload_optimizer and config.trainer.accelerator != "cpu":  # it is with the host
        optimizer = 0
    average = FP32 * parameters + buffers if config.ema.enabled else 0
    communication = working * ZERO_BUCKET * (1 if stage == 3 else 2) if sharded else 0
    undo = FP32 * parameters + buffers + average + state if undoes(config, config.trainer.accelerator) else 0
    teacher = 0 if training.distillation is None else _bytes_of(training.distillation.state_dict().values())
    fixed = weights + buffers + gradients + optimizer + average + communication + undo + teacher
    stay = gradients_stay(config, world_size)
    temporary = round(update.peak_bytes * FP32 / working / world_size) if sharded else update.peak_bytes

    def peak(one: Pass) -> int:
        return one.activation_bytes(gradients, stay=stay)

    chosen, other = passes
    per_image = (peak(chosen) - peak(other)) / (chosen.images - other.images)
    activations = max(peak(chosen), temporary)
    evaluating = 0 if evaluation is None else evaluation.peak_bytes
    base = peak(chosen) - per_image * chosen.images
    sizes = {max(round(chosen.images * factor), 1) for factor in (0.25, 0.5, 1, 2, 4)}
    usable = _usable(config)
    largest = None if usable is None else max(math.floor((usable - fixed - base) / per_image), 0)
    largest = 0 if usable is not None and fixed + temporary > usable else largest
    share = config.data.global_batch_size // world_size
    dealt = [size for size in range(1, min(largest or 0, share) + 1) if share % size == 0]
    return Memory(
        weights=weights,
        buffers=buffers,
        gradients=gradients,
        optimizer=optimizer,
        average=average,
        communication=communication,
        undo=undo,
        teacher=teacher,
        activations=activations,
        activations_per_image=round(per_image),
        evaluation=evaluating,
        total=fixed + max(activations, evaluating),
        totals={size: fixed + max(round(base + per_image * size), temporary, evaluating) for size in sorted(sizes)},
        usable=usable,
        largest_micro_batch=largest,
        fitting_micro_batch=max(dealt, default=None),
    )


@dataclass(frozen=True, kw_only=True)
class CheckpointSize:
    """Bytes on disk.

    Attributes:
        each: One checkpoint.
        kept: All that are kept at once at the end.
    """

    each: int
    kept: int


def plan_checkpoints(
    config: Config, training: FakeTraining, update: Update, *, epochs: int, steps: int = 0
) -> CheckpointSize:
    """Checkpoints by what is saved: weights and buffers, their average, the optimizer's state; under ZeRO twice."""
    network = training.network
    parameters = sum(parameter.numel() for parameter in network.parameters())
    sharded = config.trainer.strategy == "deepspeed"
    working = 2 if sharded and config.trainer.precision != "32-true" else FP32
    weights = FP32 * parameters + _bytes_of(network.buffers())
    average = weights if config.ema.enabled else 0
    state = round(update.state_bytes * FP32 / working)
    tensors = len(network.state_dict()) * (2 if average else 1) + update.state_tensors
    each = weights + average + state + tensors * TENSOR_OVERHEAD_BYTES
    if sharded:  # DeepSpeed's parts, master weights among them, beside the whole (ADR 4)
        each += working * parameters + FP32 * parameters + state
    checkpoint = config.checkpoint
    kept = min(checkpoint.keep_last + (checkpoint.keep_best or 0), max(epochs // checkpoint.every_n_epochs, 1))
    for_ever = steps // checkpoint.keep_every_n_steps if checkpoint.keep_every_n_steps is not None else 0
    return CheckpointSize(each=each, kept=each * (kept + for_ever))


def _usable(config: Config) -> int | None:
    memory = config.launch.hardware.memory_gb
    if memory is None:
        return None
    return int(memory * 2**30 * (1 - RESERVED_SHARE)) - (RESERVED_BYTES if config.trainer.accelerator != "cpu" else 0)


def _bytes_of(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
