"""The loops that benchmarks/train.py compares, each a process: ``python -m benchmarks.loops bare|effnet BATCH SIZE …``.

All take the same batches of uint8 images from memory, and normalise them where they train.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from timm.loss import LabelSmoothingCrossEntropy
from timm.utils import ModelEmaV3

import trainer.fit
from benchmarks.turns import Batches, Shape
from configs.load import load_config
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.imagenet import ImageNetDataModule
from datamodules.indexing.index import ShardIndex
from datamodules.streaming.loaders import Batch
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.position import Positions
from datamodules.streaming.transforms import channel_statistics
from trainer.assembly import build_module, resolve_accelerator
from trainer.host_memory import keep_freed_memory
from trainer.optimization import build_optimizer
from trainer.processes import Processes
from trainer.signals import StopFlag


def configuration(shape: Shape, overrides: list[str], *, ranks: int = 1) -> Config:
    """B0 with effnet's defaults (RMSprop, label smoothing, averaged weights), for a run that does not end."""
    settings = [
        "data.train_shards=none.tar",
        "data.val_shards=none.tar",
        f"data.global_batch_size={shape.batch * ranks}",
        f"data.micro_batch_size={shape.batch}",
        "data.num_lanes=1",
        f"data.image_size={shape.size}",
        f"trainer.devices={ranks}",
        "tracking.mode=disabled",
    ]
    return load_config([], [*settings, *overrides]).config


class _Endless:
    """As long an epoch as Lightning is told, from memory."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)


class InMemory(ImageNetDataModule):
    """Batches from memory, in place of shards; all else of a run is as it is."""

    def __init__(self, config: Config, batches: Batches) -> None:
        super().__init__(config.data, seed=config.seed, image_size=1, in_chans=config.model.in_chans)
        self._batches = batches

    def prepare_data(self) -> None:
        """Nothing."""

    def setup(self, stage: str) -> None:
        """An epoch that no benchmark comes to the end of."""
        samples = np.full(1000, 10**6 * self.data.global_batch_size // 1000)
        order = TrainingOrder(
            samples, seed=0, global_batch_size=self.data.global_batch_size, num_lanes=1, window_shards=1
        )
        self.train_index = self.val_index = ShardIndex((), *[np.zeros(0, dtype=np.int64)] * 6)  # there are no shards
        self.positions = Positions(order, self.train_index, self.val_index)

    def train_dataloader(self) -> Any:
        """All of them."""
        return _Endless(self._batches)

    def val_dataloader(self) -> Any:
        """Asked for, and never used."""
        return _Endless(self._batches)


def effnet(config: Config, batches: Batches) -> None:
    """`effnet fit` as a rank runs it, from the frozen configuration on: all callbacks, loggers, checks."""
    trainer.fit.build_datamodule = lambda *_: InMemory(config, batches)  # type: ignore[assignment, return-value]
    with tempfile.TemporaryDirectory() as name:
        run = RunDirectory(Path(name) / "run")
        run.freeze(config)
        processes, console = Processes.from_environment(), Console(file=sys.stderr)
        trainer.fit.fit(run, attempt=0, flag=StopFlag(), processes=processes, console=console)


def bare(config: Config, batches: Batches) -> None:
    """What PyTorch's tutorials do: the same network, loss, optimizer, average and host memory, and nothing else."""
    device = torch.device(resolve_accelerator(config))
    if device.type == "cpu":
        keep_freed_memory()
    torch.backends.cudnn.benchmark = True
    network = build_module(config).network.to(device)
    mean, std = (torch.tensor(v, device=device).view(1, -1, 1, 1) * 255 for v in channel_statistics(config.data, 3))
    optimizer, loss_of = (
        build_optimizer(network, config.optimizer),
        LabelSmoothingCrossEntropy(config.loss.label_smoothing),
    )
    average = ModelEmaV3(network, decay=config.ema.decay, dtype=torch.float32)
    mixed = config.trainer.precision == "bf16-mixed"
    compiled = torch.compile(network, mode=mode) if (mode := getattr(config.trainer, "compile", None)) else network
    network.train()
    for step, batch in enumerate(batches, start=1):
        images, targets = (tensor.to(device, non_blocking=True) for tensor in (batch.images, batch.targets))
        images = ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16) if mixed else nullcontext():
            logits = compiled(images)
        loss_of(logits.float(), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update(network, step=step)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("loop", choices=["bare", "effnet"])
    parser.add_argument("batch", type=int)
    parser.add_argument("size", type=int)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    shape, ranks = Shape(arguments.batch, arguments.size), Processes.from_environment().world_size
    config = configuration(shape, arguments.overrides, ranks=ranks)
    if config.trainer.num_threads:
        torch.set_num_threads(config.trainer.num_threads)
    loop = {"bare": bare, "effnet": effnet}[arguments.loop]
    loop(config, Batches(shape, cuda=resolve_accelerator(config) == "cuda"))


if __name__ == "__main__":
    main()
