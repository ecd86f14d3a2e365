"""What a user would write without effnet: two processes of Lightning's DDP train timm's B0 from WebDataset shards.

    torchrun --nproc-per-node 2 -m benchmarks.bare_lightning SHARDS

Prints the word of benchmarks/launch.py once the first step is done.
"""

import sys
from pathlib import Path
from typing import Any

import pytorch_lightning
import timm
import torch
import webdataset as wds
from timm.optim import create_optimizer_v2
from torch.nn.functional import cross_entropy
from torchvision import transforms

FIRST_STEP = "first step done"


class Bare(pytorch_lightning.LightningModule):
    """Network, loss and optimizer; says when its first step is done."""

    def __init__(self) -> None:
        super().__init__()
        self.network = timm.create_model("efficientnet_b0")

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        """Cross entropy of a batch."""
        images, labels = batch
        return cross_entropy(self.network(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Timm's RMSprop."""
        optimizer: torch.optim.Optimizer = create_optimizer_v2(self.network, "rmsproptf", lr=0.01)
        return optimizer

    def on_train_batch_end(self, *_: Any) -> None:
        """Say so."""
        print(FIRST_STEP, flush=True)


def main() -> None:
    transform = transforms.Compose(
        [transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    shards = [str(path) for path in sorted(Path(sys.argv[1]).glob("*-train-*.tar"))]
    dataset = wds.WebDataset(shards, nodesplitter=wds.split_by_node, shardshuffle=100).shuffle(100).decode("pil")
    dataset = dataset.to_tuple("jpg", "cls").map_tuple(transform, lambda label: label).batched(1)
    trainer = pytorch_lightning.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(Bare(), wds.WebLoader(dataset, batch_size=None, num_workers=0))


if __name__ == "__main__":
    main()
