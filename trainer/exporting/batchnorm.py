"""BatchNorm's statistics of a mean over checkpoints, estimated anew: those of other weights are not its own.

The mean of the checkpoints' statistics is what is left where no images are at hand. After Izmailov et al., "Averaging
Weights Leads to Wider Optima and Better Generalization" (UAI 2018, arXiv 1803.05407), section 3.2.
"""

from collections.abc import Callable, Iterable, Iterator

import torch
from torch.optim.swa_utils import update_bn

from datamodules.streaming.loaders import Batch
from trainer.module import EfficientNetModule


def estimate(module: EfficientNetModule, batches: Iterable[Batch], advance: Callable[[int], None]) -> int:
    """Set the running statistics to the mean over batches, as torch's SWA does; returns over how many images.

    Args:
        module: Whose network; it ends in the mode in which it was.
        batches: Of training, augmented; one smaller than the first is left out, which would count as much as that.
        advance: Told how many images are done.
    """
    images, size = 0, 0

    def normalised() -> Iterator[torch.Tensor]:
        nonlocal images, size
        for batch in batches:
            size = size or len(batch.images)
            if len(batch.images) == size:
                yield module.normalise(batch.images)
                images += size
                advance(len(batch.targets))

    update_bn(normalised(), module.network)
    return images
