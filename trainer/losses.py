"""The loss of a configuration, and the mixing and erasing of images before it: all timm's."""

from typing import NamedTuple

from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from configs.schema import Augmentation, Config


class Regularisation(NamedTuple):
    """What is stronger or weaker from one stage of training to another.

    Attributes:
        mixup: Mixes samples; None mixes none.
        loss: Of a micro-batch.
        drop_rate: Dropout before the classifier.
    """

    mixup: Mixup | None
    loss: nn.Module
    drop_rate: float

    @classmethod
    def of(cls, config: Config) -> "Regularisation":
        """That of a configuration."""
        return cls(build_mixup(config), build_loss(config), config.model.drop_rate)


def build_loss(config: Config) -> nn.Module:
    """What a micro-batch's logits are compared with its targets by: class numbers, or rows of shares after mixing."""
    loss, smoothing = config.loss, config.loss.label_smoothing
    built: nn.Module
    if loss.name == "jsd":
        built = JsdCrossEntropy(num_splits=config.data.augmentation.aug_splits, smoothing=smoothing)
    elif loss.name == "bce":
        # Mixing has smoothed the targets already; timm then leaves them as they are.
        built = BinaryCrossEntropy(smoothing, target_threshold=loss.bce_target_thresh, sum_classes=loss.bce_sum)
    elif _mixes(config):
        built = SoftTargetCrossEntropy()
    else:
        built = LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()
    return built


def build_mixup(config: Config) -> Mixup | None:
    """Mixup (Zhang et al., arXiv 1710.09412) and CutMix (Yun et al., arXiv 1905.04899); None where both are off."""
    loss = config.loss
    if not _mixes(config):
        return None
    return Mixup(
        mixup_alpha=loss.mixup_alpha,
        cutmix_alpha=loss.cutmix_alpha,
        prob=loss.mixup_prob,
        switch_prob=loss.mixup_switch_prob,
        mode=loss.mixup_mode,
        label_smoothing=loss.label_smoothing,
        num_classes=config.data.num_classes,
    )


def build_erasing(augmentation: Augmentation) -> RandomErasing | None:
    """Erasing of 2% to a third of the area at an aspect ratio of 0.3 to 3.3 (Zhong et al., arXiv 1708.04896).

    Of several views of each sample, the clean one stays whole.
    """
    if not augmentation.random_erasing_prob:
        return None
    return RandomErasing(
        augmentation.random_erasing_prob,
        mode=augmentation.random_erasing_mode,
        max_count=augmentation.random_erasing_count,
        num_splits=augmentation.aug_splits or 0,
        device="cpu",
    )


def _mixes(config: Config) -> bool:
    return bool(config.loss.mixup_alpha or config.loss.cutmix_alpha)
