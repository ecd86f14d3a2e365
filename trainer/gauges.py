"""What a row of metrics says beside the sums of training: rates, scales, times, memory. Units: docs/metrics.md."""

import copy
import math
from collections.abc import Callable, Sequence

import torch
from pytorch_lightning import Trainer
from pytorch_lightning.plugins import MixedPrecision
from pytorch_lightning.strategies import DeepSpeedStrategy
from torch import nn
from torch.optim import Optimizer
from torch.utils.flop_counter import FlopCounterMode

from configs.schema import Config

TRAINING_PASSES = 3
"""Forward passes that forward and backward pass compute as much as (Kaplan et al., arXiv 2001.08361, section 2.1)."""


def learning_rates(optimizer: Optimizer) -> dict[str, float]:
    """The next step's rate; where layers have rates of their own (optimizer.layer_decay), also each group's."""
    groups = optimizer.param_groups
    rates = {"lr": groups[0]["lr"] / groups[0].get("lr_scale", 1.0)}
    if any("lr_scale" in group for group in groups):
        rates |= {f"lr_group/{number:02d}": group["lr"] for number, group in enumerate(groups)}
    return rates


def loss_scale(trainer: Trainer) -> dict[str, float]:
    """The factor of the loss under fp16, read off the device; nothing under any other precision."""
    plugin = trainer.precision_plugin
    if isinstance(plugin, MixedPrecision) and plugin.scaler is not None:
        return {"train/loss_scale": plugin.scaler.get_scale()}
    return {}


def gradient_norm(optimizer: Optimizer) -> torch.Tensor:
    """() float32 on the device: the 2-norm of all gradients together, which every rank of DDP has alike."""
    parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return nn.utils.get_total_norm(gradients).float()


def zero_gradient_norm(trainer: Trainer) -> torch.Tensor | None:
    """The same of DeepSpeed's latest step, as it has it for clipping; None without DeepSpeed, or where it has none."""
    if not isinstance(trainer.strategy, DeepSpeedStrategy):
        return None
    engine = trainer.strategy.deepspeed_engine
    norm = engine.get_global_grad_norm()
    return None if norm is None else torch.as_tensor(norm, dtype=torch.float32, device=engine.device).reshape(())


def device_memory(device: torch.device) -> dict[str, float]:
    """Of this rank's GPU since the attempt began; nothing on the CPU."""
    if device.type != "cuda":
        return {}
    return {
        "device/memory_peak_gb": torch.cuda.max_memory_allocated(device) / 1e9,
        "device/memory_reserved_gb": torch.cuda.memory_reserved(device) / 1e9,
    }


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of them do not exceed (nearest rank)."""
    return sorted(values)[max(math.ceil(share * len(values)), 1) - 1]


class Since:
    """How much a count has grown since it was last asked for."""

    def __init__(self, count: Callable[[], float]) -> None:
        self._count = count
        self._last = 0.0

    def __call__(self) -> float:
        """The growth."""
        now = self._count()
        growth, self._last = now - self._last, now
        return growth


class Utilisation:
    """Model FLOPs utilisation: the arithmetic that training needs, over what the devices could do in that time.

    Needs the device's peak of `launch.hardware`, for the precision in use; without it there is none. A teacher's work
    and that of recomputed activations is not counted (Chowdhery et al., arXiv 2204.02311, appendix B).
    """

    def __init__(self, config: Config) -> None:
        hardware = config.launch.hardware
        rates = {
            "32-true": hardware.fp32_tflops,
            "bf16-mixed": hardware.bf16_tflops,
            "16-mixed": hardware.fp16_tflops,
        }
        self._peak_tflops = rates[config.trainer.precision]
        self._shadow: nn.Module | None = None
        self._flops: dict[tuple[int, ...], int] = {}

    def prepare(self, network: nn.Module) -> None:
        """Keep the shapes of the network that trains, while no strategy has taken it to pieces."""
        if self._peak_tflops is not None:
            self._shadow = copy.deepcopy(network).to("meta").eval()

    def of(self, shape: Sequence[int], *, images_per_second: float) -> dict[str, float]:
        """That of one device.

        Args:
            shape: (N, C, H, W) of the images that the network sees.
            images_per_second: Of them, on this device.
        """
        if self._shadow is None or self._peak_tflops is None:
            return {}
        image = tuple(shape[1:])
        if image not in self._flops:
            self._flops[image] = forward_flops(self._shadow, image)
        flops = TRAINING_PASSES * self._flops[image] * images_per_second
        return {"throughput/mfu": flops / (self._peak_tflops * 1e12)}


def forward_flops(network: nn.Module, image: tuple[int, ...]) -> int:
    """Floating-point operations of the forward pass for one image of (C, H, W): two for each multiply-add.

    ``network`` is on the device `meta`: nothing is computed. 0.7 s for B0, 4 s for B7.
    """
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *image, device="meta", dtype=next(network.parameters()).dtype))
    return int(counter.get_total_flops())
