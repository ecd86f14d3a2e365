"""One micro-batch size, tried: does a step fit, how long does it take, how much memory does it need at most."""

import math
import resource
import statistics
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities.memory import garbage_collection_cuda, is_oom_error

from configs.checks.training import CUDA_GRAPHS
from configs.schema import Config
from trainer.ema import WeightAverage
from trainer.module import EfficientNetModule
from trainer.processes import Processes
from trainer.tuning.attempt import last_phase, try_training

ALONE = Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)
WARM_UP_STEPS = 2
"""Not timed: the first makes the optimizer's state and the average, picks kernels, compiles."""
OUT_OF_MEMORY = ("unable to find an engine to execute this computation", "CUBLAS_STATUS_ALLOC_FAILED")
"""What torch says, beside what Lightning knows, where cuDNN or cuBLAS find no room for their workspace."""
TOO_FEW = "Expected more than 1 value per channel"
"""torch's words where BatchNorm has nothing to normalise by."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What came of a size.

    Attributes:
        micro_batch_size: Samples at once.
        accumulate_grad_batches: Micro-batches of a device in a step of the run; None where the size does not divide
            the global batch.
        images_per_s: Of one device in the run; None where it does not train.
        peak_bytes: Most memory at once: what CUDA's allocator gave out, or this process's resident set.
        reason: Why it does not train; None where it does.
    """

    micro_batch_size: int
    accumulate_grad_batches: int | None
    images_per_s: float | None = None
    peak_bytes: int | None = None
    reason: str | None = None

    @property
    def trains(self) -> bool:
        """Whether its steps ran."""
        return self.reason is None


class StepTimes(Callback):
    """How long micro-batches take on the device, from when each is there; must be the last callback.

    Attributes:
        accumulating_s: Of micro-batches after which no optimizer step comes.
        stepping_s: Of those after which one comes, with it.
    """

    def __init__(self) -> None:
        self.accumulating_s: list[float] = []
        self.stepping_s: list[float] = []
        self._began = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin when the device has done what came before."""
        _wait_for(pl_module.device)
        self._began = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End when it has done this."""
        _wait_for(pl_module.device)
        assert isinstance(pl_module, EfficientNetModule)
        if trainer.global_step + (not pl_module.ends_step(batch_idx)) <= WARM_UP_STEPS:
            if trainer.global_step == WARM_UP_STEPS and pl_module.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # cuDNN tried its algorithms in all the memory there was
            return
        times = self.stepping_s if pl_module.ends_step(batch_idx) else self.accumulating_s
        times.append(time.perf_counter() - self._began)

    def images_per_s(self, size: int, accumulate: int) -> float:
        """Of a device that accumulates so many micro-batches of ``size`` samples a step."""
        accumulating_s = statistics.median(self.accumulating_s) if self.accumulating_s else 0.0
        return size * accumulate / (accumulating_s * (accumulate - 1) + statistics.median(self.stepping_s))


def try_size(config: Config, size: int, accumulate: int | None, *, steps: int) -> Trial:
    """Train some steps with micro-batches of ``size`` samples, on one device.

    Steps of the trial have two micro-batches where those of the run have more: the others are like the first. The time
    of loading is not in it.

    Args:
        config: Of the run.
        size: Samples at once.
        accumulate: Micro-batches of a device in a step of the run; None is one.
        steps: Optimizer steps that are timed.

    Raises:
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault.
    """
    if config.trainer.compile in CUDA_GRAPHS and (accumulate or 1) > 1:
        reason = "CUDA graphs, and several micro-batches a step"
        return Trial(micro_batch_size=size, accumulate_grad_batches=accumulate, reason=reason)
    tried = min(accumulate or 1, 2)
    lanes = math.gcd(config.data.num_lanes, size * tried)
    # Repeats need not divide so small a batch, and change nothing that is measured.
    once = config.data.augmentation.model_copy(update={"aug_repeats": None})
    data = {"micro_batch_size": size, "global_batch_size": size * tried, "num_lanes": lanes, "augmentation": once}
    config = last_phase(config, steps=WARM_UP_STEPS + steps)
    config = config.model_copy(update={"data": config.data.model_copy(update=data)})
    times, average = StepTimes(), [WeightAverage(config.ema)] if config.ema.enabled else []
    found: dict[str, Any] = {"micro_batch_size": size, "accumulate_grad_batches": accumulate}
    _forget_peak()
    try:
        try_training(config, ALONE, [*average, times])
        found |= {"images_per_s": times.images_per_s(size, accumulate or 1), "peak_bytes": _peak_bytes()}
    except RuntimeError as error:
        if not (is_oom_error(error) or any(words in str(error) for words in OUT_OF_MEMORY)):
            raise
        found["reason"] = "out of memory"
    except ValueError as error:
        if TOO_FEW not in str(error):
            raise
        found["reason"] = "too few samples for BatchNorm"
    # Not before: the error holds the frames, and they the tensors.
    del times, average
    garbage_collection_cuda()
    return Trial(**found)


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(OSError):  # Linux alone; elsewhere the peak is that of all sizes so far
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak_bytes() -> int:
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        return torch.cuda.max_memory_allocated()
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
