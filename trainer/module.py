"""The LightningModule: what happens to one micro-batch, in training and in evaluation."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import torch
from pytorch_lightning import LightningModule
from pytorch_lightning.core.optimizer import LightningOptimizer
from timm.scheduler.scheduler import Scheduler
from timm.utils import adaptive_clip_grad
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from configs.batches import BatchLayout
from configs.progressive import stage_configs
from configs.schema import Config
from datamodules.streaming.loaders import Batch
from datamodules.streaming.randomness import MICRO_BATCH, seed_everything
from datamodules.streaming.transforms import channel_statistics
from trainer.distillation import Distillation
from trainer.logs import logger
from trainer.losses import Regularisation, build_erasing
from trainer.metrics import log_row
from trainer.network import CLASSIFIER
from trainer.optimization import build_optimizer, build_scheduler
from trainer.plateau import PlateauScheduler
from trainer.queued_copies import QueuedCopies


class StepSkipped(Exception):  # noqa: N818 - not an error
    """Raised by a callback in ``on_before_optimizer_step``: the optimizer must not step."""


class EfficientNetModule(LightningModule):
    """An EfficientNet, its loss, its optimizer and its metrics.

    Metrics are summed on the device; nothing in a step waits for it.

    Attributes:
        network: The timm model; its parameters are all that the module has.
        train_sums: (4,) float32 on the device: loss, correct, samples and substituted samples since the last reading,
            of this rank. A micro-batch whose loss is not finite counts only as substituted samples.
        losses: (accumulate_grad_batches,) float32 on the device: of this rank's micro-batches in the step.
        skipped: Whether the latest optimizer step was not taken.
        skipped_steps: Optimizer steps of the run that were not taken, or taken back.
        settle: To be called before what a step has left is read: learns whether it counts. Set by `NonFiniteSteps`.
    """

    def __init__(self, config: Config, network: nn.Module) -> None:
        super().__init__()
        self.config = config
        self.network = network
        # No buffers: DeepSpeed would cast them to 16 bits, in which a sum stops growing at 256.
        statistics = channel_statistics(config.data, config.model.in_chans)
        self._mean, self._std = (torch.tensor(values).view(1, -1, 1, 1) * 255 for values in statistics)
        self.train_sums = torch.zeros(4)
        self.losses = torch.zeros(1)
        self.skipped, self.skipped_steps = False, 0
        self.settle: Callable[[], None] = lambda: None
        self._stages = [Regularisation.of(each) for each in stage_configs(config)]
        self._stage = len(self._stages) - 1
        self._mixup, self._loss, _ = self._stages[self._stage]
        self._erasing = build_erasing(config.data.augmentation)
        # In a list, a module is not registered: neither trained, synchronised nor saved as ours.
        self._average: list[nn.Module] = []
        self._distillation: list[Distillation] = []
        self._sums: dict[str, torch.Tensor] = {}

    def set_average(self, network: nn.Module) -> None:
        """Evaluate these averaged weights beside the raw ones."""
        self._average = [network]

    def set_distillation(self, distillation: Distillation) -> None:
        """Learn from a teacher too."""
        self._distillation = [distillation]

    @property
    def average(self) -> nn.Module | None:
        """The network with averaged weights, where there is one."""
        return next(iter(self._average), None)

    @property
    def layout(self) -> BatchLayout:
        """How the global batch lies over the ranks."""
        data = self.config.data
        return BatchLayout(
            global_batch_size=data.global_batch_size,
            micro_batch_size=data.micro_batch_size,
            world_size=self.trainer.world_size,
        )

    def ends_step(self, batch_idx: int) -> bool:
        """Whether an optimizer step follows that micro-batch."""
        return (batch_idx + 1) % self.trainer.accumulate_grad_batches == 0

    @property
    def backbone_is_frozen(self) -> bool:
        """Whether only the head trains in this epoch."""
        return self.trainer.current_epoch < self.config.model.freeze_backbone_epochs

    def normalise(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) uint8 to zero mean and unit variance, in the network's dtype and memory format."""
        layout = torch.channels_last if self.config.trainer.channels_last else torch.contiguous_format
        scaled = (images - self._mean.to(images.device)).div_(self._std.to(images.device))
        return scaled.to(dtype=next(self.network.parameters()).dtype, memory_format=layout)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (N, C, H, W) uint8 to logits (N, num_classes)."""
        logits: torch.Tensor = self.network(self.normalise(images))
        return logits

    def on_fit_start(self) -> None:
        """Move to the device what is no buffer, so that no step copies it."""
        self._mean, self._std = self._mean.to(self.device), self._std.to(self.device)
        self.train_sums = torch.zeros(4, device=self.device)
        self.losses = torch.zeros(self.layout.accumulate_grad_batches, device=self.device)
        if self._erasing is not None:
            self._erasing.device = self.device
        for distillation in self._distillation:
            distillation.to(device=self.device, dtype=next(self.network.parameters()).dtype)

    def on_train_epoch_start(self) -> None:
        """Hold the backbone's BatchNorm and dropout still while it is frozen."""
        self.network.train()
        if self.backbone_is_frozen:
            self.network.eval()
            self.network.classifier.train()  # type: ignore[union-attr]

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of a micro-batch, averaged over its samples."""
        # Erasing, Mixup, dropout and stochastic depth draw by (seed, step, micro-batch): the same on any rank and after
        # any resume.
        self._enter_stage(self.trainer.datamodule.stage(self.trainer.global_step))  # type: ignore[attr-defined]
        micro_batch = self.layout.micro_batch(global_rank=self.trainer.global_rank, batch_idx=batch_idx)
        seed_everything(self.config.seed, MICRO_BATCH, self.trainer.global_step, micro_batch)
        images, targets = self.normalise(batch.images), batch.targets
        if self._erasing is not None:
            images = self._erasing(images)
        if self._mixup is not None:
            with QueuedCopies():
                images, targets = self._mixup(images, targets)
        if self.backbone_is_frozen:
            with torch.no_grad():
                features = self.network.forward_features(images)  # type: ignore[operator]
            logits = self.network.forward_head(features)  # type: ignore[operator]
        else:
            logits = self.network(images)
        loss: torch.Tensor = self._loss(logits.float(), targets)
        for distillation in self._distillation:
            loss = distillation(images, logits.float(), loss)
        size = len(batch.targets)
        correct = (logits.detach()[:size].argmax(1) == batch.targets).sum()  # of several views, the clean ones
        value = loss.detach().float()
        parts = torch.stack([value * size, correct, torch.full_like(correct, size), batch.substituted.sum()])
        finite = value.isfinite()
        parts[:3].masked_fill_(~finite, 0)
        self.train_sums += parts
        self.losses[batch_idx % len(self.losses)] = value
        # A loss that is not finite makes its gradients NaN, and so, summed, those of all ranks; any other is unchanged.
        return loss * torch.where(finite, 1.0, torch.nan)

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Lightning's, and beside its algorithms timm's adaptive gradient clipping."""
        trainer = self.config.trainer
        if trainer.gradient_clip_algorithm == "agc":
            # timm's exclude_head leaves out two tensors, and a classifier with a hidden layer has four.
            named = self.network.named_parameters()
            parameters = [parameter for name, parameter in named if not name.startswith(CLASSIFIER)]
            adaptive_clip_grad(parameters, clip_factor=trainer.gradient_clip_val)
        else:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Lightning's, which ends before the optimizer has changed anything where a callback says so."""
        self.skipped = False
        with suppress(StepSkipped):
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def on_validation_epoch_start(self) -> None:
        """Begin the sums of each set of weights."""
        self._sums = {prefix: torch.zeros(4, device=self.device) for prefix, _ in self._evaluated()}

    def validation_step(self, batch: Batch, batch_idx: int) -> dict[str, torch.Tensor]:
        """Add loss, top-1, top-5 and count of a batch to the sums; padding has weight 0.

        Returns:
            (N, num_classes) float32 logits of each set of weights, ``""`` and ``ema_``, for callbacks.
        """
        images = self.normalise(batch.images)
        found: dict[str, torch.Tensor] = {}
        for prefix, network in self._evaluated():
            logits = network(images).float()
            losses = cross_entropy(logits, batch.targets, reduction="none")
            ranked = logits.topk(min(5, logits.shape[1])).indices == batch.targets[:, None]
            parts = (losses, ranked[:, 0], ranked.any(1), torch.ones_like(losses))
            self._sums[prefix] += torch.stack([(part * batch.weights).sum() for part in parts])
            found[prefix] = logits
        return found

    def on_validation_epoch_end(self) -> None:
        """Sum over the ranks, check that every sample came once, log.

        Raises:
            RuntimeError: If the number of samples is not that of the index.
        """
        datamodule: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        expected = len(datamodule.val_index)
        metrics: dict[str, float] = {}
        for prefix, sums in self._sums.items():
            reduced = self.trainer.strategy.reduce(sums.double(), reduce_op="sum")
            assert isinstance(reduced, torch.Tensor)
            loss, top1, top5, count = reduced.tolist()
            if count != expected:
                raise RuntimeError(f"validation saw {count:.0f} samples, the index has {expected}")
            metrics |= {f"val/{prefix}loss": loss / count, f"val/{prefix}top1": top1 / count}
            metrics |= {f"val/{prefix}top5": top5 / count}
        if self.trainer.state.fn == "fit":
            schedule = self.trainer.lr_scheduler_configs[0].scheduler
            if isinstance(schedule, PlateauScheduler):  # all ranks have the same metrics
                schedule.validated(metrics[self.config.plateau_monitor])
        self.log_dict(metrics, logger=False, rank_zero_only=True)
        log_row(self.trainer, metrics)

    def configure_optimizers(self) -> Any:
        """Timm's optimizer and schedule; the schedule advances with each optimizer step."""
        samples = self.trainer.datamodule.order.samples  # type: ignore[attr-defined]
        optimizer = build_optimizer(self.network, self.config.optimizer)
        scheduler = build_scheduler(
            optimizer,
            self.config.scheduler,
            max_epochs=self.config.trainer.max_epochs,
            updates_per_epoch=samples / self.config.data.global_batch_size,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: Scheduler, metric: Any) -> None:
        """Timm's schedules are functions of the number of steps; those for batches that were passed over count too."""
        order = self.trainer.datamodule.order  # type: ignore[attr-defined]
        scheduler.step_update(num_updates=self.trainer.global_step + order.passed_over)

    def _enter_stage(self, number: int) -> None:
        """Regularise as strongly as that stage of training says; the batch has its image size and augmentation."""
        if number != self._stage:
            self._stage = number
            self._mixup, self._loss, drop_rate = self._stages[number]
            self.network.drop_rate = drop_rate  # type: ignore[assignment]
            step, stages = self.trainer.global_step, len(self._stages)
            logger.info("stage %d of %d of progressive learning begins after step %d", number + 1, stages, step)

    def _evaluated(self) -> Iterator[tuple[str, nn.Module]]:
        yield "", self.network
        if self.average is not None:
            yield "ema_", self.average
