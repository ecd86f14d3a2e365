"""How long a step takes a device, by a roofline: the time of each operation's arithmetic or memory traffic, the longer.

Calibrated on what NVIDIA published for B0 and B4 on an A100 under mixed precision; docs/plan.md has all that it was
compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from configs.problems import ConfigError, Problem, shown
from configs.schema import Config, Hardware
from trainer.planning.tracker import Kernel
from trainer.planning.work import Evaluation, Pass, Update

MEMORY_SHARE: Final = 0.315
"""Of the peak bandwidth of memory that is reached, by what operations read and write at least: 2,489 images/s of B0 and
331 of B4 at 380 pixels on an A100 of 80 GB (NVIDIA DeepLearningExamples, PyTorch, 21.03) are 0.310 and 0.317."""
ARITHMETIC_SHARE: Final = 0.5
"""Of the peak rate of arithmetic that is reached: an assumption, which decides little."""
OPERATION_S: Final = 20e-6
"""Time in which the host starts one operation. For one image B0's forward pass takes 9.3 ms on an A100 (the same
source), 39 us for each of 239 operations; C++ starts the backward pass, so half of that is assumed for both."""

Bound = Literal["memory bandwidth", "arithmetic", "starting operations"]


@dataclass(frozen=True, kw_only=True)
class DeviceTime:
    """What one device needs for its part of an optimizer step, data at hand and others not waited for.

    Attributes:
        micro_batch_s: Forward and backward pass of a micro-batch, the teacher's forward pass included.
        forward_share: Of that, the forward passes.
        teacher_s: Of that, the teacher's.
        update_s: Optimizer, moving average, the check for gradients that are not finite.
        operations: That the host starts for a micro-batch.
        bound_by: What most of a micro-batch's time goes by.
    """

    micro_batch_s: float
    forward_share: float
    teacher_s: float
    update_s: float
    operations: int
    bound_by: Bound


def plan_device_time(
    config: Config, one: Pass, update: Update, *, gradient_bytes: int, average_bytes: int, undo_bytes: int
) -> DeviceTime | None:
    """Time of the device that `launch.hardware` describes; None where it describes none.

    Raises:
        ConfigError: If it has no rate for `trainer.precision`.
    """
    reached = _reached(config)
    if reached is None:
        return None
    bandwidth, peak = reached
    moving = sum(size for _, size in one.kernels) / bandwidth
    computing = sum(flops for flops, _ in one.kernels) / peak
    device = roofline(one.kernels, bandwidth=bandwidth, peak=peak)
    starting = OPERATION_S * len(one.kernels)
    bound: Bound = "memory bandwidth" if moving > computing else "arithmetic"
    if starting > device:
        bound = "starting operations"
    forward = roofline(one.kernels[: one.forward_kernels], bandwidth=bandwidth, peak=peak)
    # The average is read twice and written once, gradients are looked at once more; what is kept to undo a step is
    # copied, multiplied by 0 or 1 as its copy is, and added to that.
    extra = (3 * average_bytes + gradient_bytes + (2 + 2 + 2 + 3) * undo_bytes) / bandwidth
    stepping = roofline(update.kernels, bandwidth=bandwidth, peak=peak) + extra
    return DeviceTime(
        micro_batch_s=_seconds(config, one.kernels, device),
        forward_share=forward / device,
        teacher_s=_seconds(config, one.teacher_kernels, roofline(one.teacher_kernels, bandwidth=bandwidth, peak=peak)),
        update_s=max(stepping, OPERATION_S * len(update.kernels)),
        operations=len(one.kernels),
        bound_by=bound,
    )


def evaluation_seconds(config: Config, evaluation: Evaluation) -> float | None:
    """Time in which that device evaluates a batch with one set of weights; None where none is described.

    Raises:
        ConfigError: As `plan_device_time`.
    """
    reached = _reached(config)
    if reached is None:
        return None
    bandwidth, peak = reached
    return _seconds(config, evaluation.kernels, roofline(evaluation.kernels, bandwidth=bandwidth, peak=peak))


def roofline(kernels: Sequence[Kernel], *, bandwidth: float, peak: float) -> float:
    """Seconds in which a device does these one after the other, at bytes/s and FLOP/s that it reaches."""
    return sum(max(flops / peak, size / bandwidth) for flops, size in kernels)


def _seconds(config: Config, kernels: Sequence[Kernel], device_s: float) -> float:
    """A GPU works while the host starts what comes next; a CPU is its own host."""
    starting = OPERATION_S * len(kernels)
    return device_s + starting if config.trainer.accelerator == "cpu" else max(device_s, starting)


def _reached(config: Config) -> tuple[float, float] | None:
    """Bytes/s and FLOP/s; None where the device is not described."""
    bandwidth, peak = config.launch.hardware.memory_gb_per_s, peak_flops(config)
    return None if bandwidth is None or peak is None else (bandwidth * 1e9 * MEMORY_SHARE, peak)


def peak_flops(config: Config) -> float | None:
    """FLOP/s that the device reaches under the configured precision, or None where no rate is known at all.

    Raises:
        ConfigError: If rates are known for other precisions only.
    """
    rates = _rates(config.launch.hardware)
    known = [precision for precision, rate in rates.items() if rate is not None]
    precision = config.trainer.precision
    if known and precision not in known:
        device = config.launch.hardware.device or "launch.hardware"
        accepted = f"{' or '.join(known)}: {device} has no rate for it"
        raise ConfigError([Problem(key="trainer.precision", received=shown(precision), accepted=accepted)])
    rate = rates[precision]
    return None if rate is None else rate * 1e12 * ARITHMETIC_SHARE


def _rates(hardware: Hardware) -> dict[str, float | None]:
    return {
        "32-true": hardware.fp32_tflops,
        "bf16-mixed": hardware.bf16_tflops,
        "16-mixed": hardware.fp16_tflops,
    }
