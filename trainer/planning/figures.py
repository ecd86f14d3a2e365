"""What a plan says of the network, its teacher, each stage of training, and evaluation."""

from dataclasses import dataclass

from configs.schema import Config
from trainer.planning.duration import StageTime
from trainer.planning.stages import Stage
from trainer.planning.step import FakeTraining
from trainer.planning.work import Evaluation, Pass


@dataclass(frozen=True, kw_only=True)
class Network:
    """Size of the network, and the work of one image in the stage of training that needs the most memory.

    Attributes:
        image_size: Side of the images in pixels, there.
        parameters: All that there are.
        macs: Multiply-adds of the forward pass.
        flops: Floating-point operations of forward and backward pass.
        moved_bytes: What both read and write, operation by operation, in training's precision.
    """

    image_size: int
    parameters: int
    macs: int
    flops: int
    moved_bytes: int

    @classmethod
    def of(cls, training: FakeTraining, one: Pass) -> "Network":
        """That of a configuration."""
        return cls(
            image_size=one.image_size,
            parameters=sum(parameter.numel() for parameter in training.network.parameters()),
            macs=one.forward_macs // one.images,
            flops=sum(flops for flops, _ in one.own_kernels) // one.images,
            moved_bytes=sum(size for _, size in one.own_kernels) // one.images,
        )


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The network that is learnt from, in the same stage.

    Attributes:
        name: As the configuration has it.
        parameters: All that there are.
        macs: Multiply-adds of the forward pass, which is all that it does, for an image.
        activations: The most that this keeps in memory, for a micro-batch.
    """

    name: str
    parameters: int
    macs: int
    activations: int

    @classmethod
    def of(cls, config: Config, training: FakeTraining, one: Pass) -> "Teacher | None":
        """That of a configuration; None where it has none."""
        name = config.distillation.teacher
        if name is None or training.distillation is None:
            return None
        return cls(
            name=name,
            parameters=sum(parameter.numel() for parameter in training.distillation.teacher.parameters()),
            macs=one.teacher_macs // one.images,
            activations=one.teacher_bytes,
        )


@dataclass(frozen=True, kw_only=True)
class StageFigures:
    """A stage of training.

    Attributes:
        stage: Its steps.
        macs: Multiply-adds of the network's forward pass, for an image.
        activations: What a micro-batch keeps in memory beside what stays.
        time: None where `launch.hardware` describes no device.
    """

    stage: Stage
    macs: int
    activations: int
    time: StageTime | None


@dataclass(frozen=True, kw_only=True)
class EvaluationFigures:
    """Evaluation.

    Attributes:
        image_size: Side of the images in pixels.
        batch_size: Images that a device takes at once.
        sets_of_weights: Raw ones, and averaged ones where an average is kept.
        validations: In the whole run.
        macs: Multiply-adds of one set of weights, for an image.
        activations: What a batch keeps in memory beside what stays.
        batch_s: Of a device, for a batch and all sets of weights; None where it is not described.
    """

    image_size: int
    batch_size: int
    sets_of_weights: int
    validations: int
    macs: int
    activations: int
    batch_s: float | None

    @classmethod
    def of(
        cls, config: Config, evaluation: Evaluation, *, validations: int, seconds: float | None
    ) -> "EvaluationFigures":
        """That of a configuration, whose batch takes a device so many ``seconds`` with one set of weights."""
        sets = 2 if config.ema.enabled else 1
        return cls(
            image_size=evaluation.image_size,
            batch_size=evaluation.images,
            sets_of_weights=sets,
            validations=validations,
            macs=evaluation.macs // evaluation.images,
            activations=evaluation.peak_bytes,
            batch_s=None if seconds is None else sets * seconds,
        )
