"""Loaders of other shard formats, for the record: MosaicML's streaming and litdata, where they are installed.

They are no dependencies of ours: `uv run --with mosaicml-streaming --with litdata python -m benchmarks.data`.
"""

import importlib.util
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.data import DataLoader

Transform = Callable[[Image.Image], torch.Tensor]
Opener = Callable[[int], Any]
"""From a number of workers to a context manager that gives batches."""


def other_formats(jpegs: Sequence[bytes], folder: Path, transform: Transform, *, batch_size: int) -> dict[str, Opener]:
    """Write the images in each format whose package is here; returns what opens its loader, by name."""
    found: dict[str, Opener] = {}
    if importlib.util.find_spec("streaming") is not None:
        found["MosaicML streaming"] = _streaming(jpegs, folder / "mds", transform, batch_size)
    if importlib.util.find_spec("litdata") is not None:
        found["litdata"] = _litdata(jpegs, folder / "litdata", transform, batch_size)
    return found


def _streaming(jpegs: Sequence[bytes], folder: Path, transform: Transform, batch_size: int) -> Opener:
    from streaming import MDSWriter, StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    with MDSWriter(out=str(folder), columns={"jpg": "bytes", "cls": "int"}) as writer:
        for number, jpeg in enumerate(jpegs):
            writer.write({"jpg": jpeg, "cls": number % 1000})

    class Images(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: Any) -> Any:
            sample = super().__getitem__(at)
            return transform(_image(sample["jpg"])), sample["cls"]

    @contextmanager
    def opened(num_workers: int) -> Iterator[Iterable[Any]]:
        clean_stale_shared_memory()
        dataset = Images(local=str(folder), shuffle=True, batch_size=batch_size)
        yield DataLoader(dataset, batch_size=batch_size, num_workers=num_workers)

    return opened


def _litdata(jpegs: Sequence[bytes], folder: Path, transform: Transform, batch_size: int) -> Opener:
    import litdata

    numbers = list(range(len(jpegs)))
    # Left to itself it makes `spawn` the start method of all that comes after it.
    litdata.optimize(
        fn=partial(_sample, jpegs),
        inputs=numbers,
        output_dir=str(folder),
        chunk_bytes="64MB",
        num_workers=1,
        start_method="fork",
    )

    class Images(litdata.StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> Any:
            sample = super().__getitem__(index)
            return transform(_image(sample["jpg"])), sample["cls"]

    @contextmanager
    def opened(num_workers: int) -> Iterator[Iterable[Any]]:
        dataset = Images(str(folder), shuffle=True)
        yield litdata.StreamingDataLoader(dataset, batch_size=batch_size, num_workers=num_workers)

    return opened


def _sample(jpegs: Sequence[bytes], number: int) -> dict[str, Any]:
    return {"jpg": jpegs[number], "cls": number % 1000}


def _image(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")
