"""Exponential moving average of the weights, by timm's ModelEmaV3."""

from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from timm.utils import ModelEmaV3
from torch import nn

from configs.schema import Ema
from trainer.module import EfficientNetModule


class WeightAverage(Callback):
    """Updates an average of all weights and buffers after each optimizer step, and keeps it in the checkpoint.

    Must come after BatchNormStatistics among the callbacks, whose result it averages.
    """

    def __init__(self, ema: Ema) -> None:
        self._ema = ema
        self._average: ModelEmaV3 | None = None
        self._restored: dict[str, torch.Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the network as it is now, or with the average of the checkpoint."""
        assert isinstance(pl_module, EfficientNetModule)
        average = ModelEmaV3(
            pl_module.network, decay=self._ema.decay, use_warmup=self._ema.use_warmup, dtype=torch.float32
        )
        average.requires_grad_(requires_grad=False)
        if self._restored is not None:
            average.module.load_state_dict(self._restored)
            self._restored = None
        self._average = average
        pl_module.set_average(self.network)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after an optimizer step that was taken."""
        assert isinstance(pl_module, EfficientNetModule)
        assert self._average is not None
        if pl_module.ends_step(batch_idx) and not pl_module.skipped:
            self._average.update(pl_module.network, step=trainer.global_step)

    def step_state(self) -> list[torch.Tensor]:
        """What a step changes."""
        return [*self.network.parameters(), *self.network.buffers()]

    def decay(self, step: int) -> float:
        """Share of the old average that the update after an optimizer step keeps."""
        assert self._average is not None
        return float(self._average.get_decay(step))

    @property
    def network(self) -> nn.Module:
        """The network with the averaged weights, in eval mode."""
        assert self._average is not None
        module: nn.Module = self._average.module
        return module

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights, by the names that the network has for them."""
        return {"network": dict(self.network.state_dict())} if self._average is not None else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the averaged weights until training starts."""
        self._restored = state_dict.get("network")
