"""timm's own train.py on batches from memory: ``python -m benchmarks.timm_loop TRAIN_PY BATCH SIZE FLAGS``.

The file is the user's, from a checkout of timm, and is run as it is; only its data set and loader are others: timm's
`PrefetchLoader`, which normalises where it trains, over the batches that the other loops take.
"""

import os
import runpy
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import timm.data
import torch
from timm.data.loader import PrefetchLoader

from benchmarks.turns import Batches, Shape


class _Pairs:
    """Images and targets, with what timm's loader asks of a DataLoader."""

    dataset, sampler, batch_sampler = None, None, None

    def __init__(self, batches: Batches) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for batch in self._batches:
            yield batch.images, batch.targets


def main() -> None:
    path, batch, size, *flags = sys.argv[1:]
    batches = Batches(Shape(int(batch), int(size)), cuda="--device=cpu" not in flags)

    def create_loader(*_: Any, mean: Any, std: Any, device: torch.device, img_dtype: torch.dtype, **__: Any) -> Any:
        return PrefetchLoader(_Pairs(batches), mean=mean, std=std, device=device, img_dtype=img_dtype)

    timm.data.create_dataset = lambda *_, **__: range(10**9)
    timm.data.create_loader = create_loader
    os.chdir(tempfile.gettempdir())
    with tempfile.TemporaryDirectory() as output:
        sys.argv = [path, "--batch-size", batch, "--img-size", size, "--output", output, *flags]
        runpy.run_path(path, run_name="__main__")


if __name__ == "__main__":
    main()
