"""Input: batches a second beside timm's loader, a stock WebDataset pipeline and bare decoding; resuming; order; memory.

All on this machine's CPU, in one run. A batch is 64 images of 224x224 as it leaves the loader. timm's loader is what
`timm.data.create_loader` returns, with its wds reader, as timm's own train.py builds it (`timm`), and also without its
last stage, which normalises in the training process (`timm, uint8`): ours leaves that to the device, as timm's does on
a GPU. The stock pipeline is that of WebDataset's README with torchvision's transforms.

    python -m benchmarks.data [--quick]

MosaicML's streaming and litdata take part where they are installed (benchmarks/other_formats.py).
"""

import argparse
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import simplejpeg
import torch
import webdataset as wds
from timm.data import create_dataset, create_loader
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.nn.functional import interpolate
from torchvision import transforms

from benchmarks.measure import finish, median_ratio, report, take_turns
from benchmarks.other_formats import other_formats
from benchmarks.photographs import write_shards
from configs.batches import BatchLayout
from configs.schema import Augmentation, Data
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.urls import expand
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import EvaluationPlan, TrainingPlan
from datamodules.streaming.source import ShardSource
from datamodules.streaming.transforms import evaluation_transform, training_transform

BATCH, SIZE = 64, 224
IMAGE_BYTES = 3 * SIZE * SIZE
SHARDS, SAMPLES, DIFFERENT = 8, 256, 64
WARM_UP = 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BILLION_SHARDS, BILLION_SAMPLES = 1_000_000, 1_000
RANKS_PER_NODE, WORKERS_PER_RANK = 8, 4


def data_settings(num_workers: int) -> Data:
    return Data.model_validate({"train_shards": "train", "val_shards": "val", "num_workers": num_workers})


def open_training(index: ShardIndex, num_workers: int, *, first_step: int = 0) -> TrainingStream:
    data = data_settings(num_workers)
    order = TrainingOrder(index.shard_samples, seed=0, global_batch_size=BATCH, num_lanes=8, window_shards=4)
    layout = BatchLayout(global_batch_size=BATCH, micro_batch_size=BATCH, world_size=1)
    source = ShardSource(index, TrainingPlan(order, layout, 0), first=first_step)
    decode = Decode(training_transform(data, SIZE), in_chans=3, num_classes=1000, seed=0)
    return TrainingStream(
        make_loader(source, decode, data, batch_size=BATCH, pin_memory=False, image_bytes=IMAGE_BYTES), first=first_step
    )


@contextmanager
def our_training(index: ShardIndex, num_workers: int) -> Iterator[Iterable[Any]]:
    with closing(open_training(index, num_workers)) as stream:
        yield stream.take(sys.maxsize)


@contextmanager
def our_evaluation(index: ShardIndex, num_workers: int) -> Iterator[Iterable[Any]]:
    data = data_settings(num_workers)
    source = ShardSource(index, EvaluationPlan(samples=len(index), batch_size=BATCH, global_rank=0, world_size=1))
    decode = Decode(evaluation_transform(data, SIZE), in_chans=3, num_classes=1000, seed=None)
    yield make_loader(source, decode, data, batch_size=BATCH, pin_memory=False, image_bytes=IMAGE_BYTES)


@contextmanager
def timm_loader(folder: Path, num_workers: int, *, training: bool, normalised: bool) -> Iterator[Iterable[Any]]:
    split = "train" if training else "validation"
    dataset = create_dataset("wds/imagenet1k", str(folder), split=split, is_training=training, batch_size=BATCH)
    augmentation = Augmentation()
    loader = create_loader(
        dataset,
        (3, SIZE, SIZE),
        BATCH,
        is_training=training,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        color_jitter=None,
        interpolation="bicubic",
        crop_pct=0.875,
        num_workers=num_workers,
        device=torch.device("cpu"),
        pin_memory=False,
    )
    yield loader if normalised else loader.loader


def stock_transform() -> transforms.Compose:
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )


@contextmanager
def stock_webdataset(folder: Path, num_workers: int) -> Iterator[Iterable[Any]]:
    shards = [str(path) for path in sorted(folder.glob("*-train-*.tar"))]
    dataset = wds.WebDataset(shards, shardshuffle=100).shuffle(1000).decode("pil").to_tuple("jpg", "cls")
    dataset = dataset.map_tuple(stock_transform(), lambda label: label).batched(BATCH)
    yield wds.WebLoader(dataset, batch_size=None, num_workers=num_workers)


def images_per_second(open_loader: Callable[[], Any], batches: int) -> float:
    with open_loader() as loader:
        iterator = iter(loader)
        for _ in range(WARM_UP):
            next(iterator)
        begin = time.perf_counter()
        images = sum(len(next(iterator)[0]) for _ in range(batches))
        elapsed = time.perf_counter() - begin
        del iterator
    return images / elapsed


def bare_images_per_second(jpegs: list[bytes], processes: int, batches: int) -> float:
    """Decode, crop and resize from memory, in so many processes; nothing is kept."""
    context = get_context("fork")
    barrier, results = context.Barrier(processes), context.Queue()
    workers = [
        context.Process(target=_bare_loop, args=(jpegs, batches * BATCH // processes, barrier, results))
        for _ in range(processes)
    ]
    for worker in workers:
        worker.start()
    rates = [results.get() for _ in workers]
    for worker in workers:
        worker.join()
    return sum(rates)


def _bare_loop(jpegs: list[bytes], count: int, barrier: Any, results: Any) -> None:
    torch.set_num_threads(1)
    whole = torch.empty(1, 1, 1).expand(1, 375, 500)
    augmentation = Augmentation()
    barrier.wait()
    for number in range(-BATCH, count):
        if number == 0:
            begin = time.perf_counter()
        top, left, rows, columns = RandomResizedCropAndInterpolation.get_params(
            whole, augmentation.scale, augmentation.ratio
        )
        pixels = torch.from_numpy(simplejpeg.decode_jpeg(jpegs[number % len(jpegs)])).unsqueeze(0).permute(0, 3, 1, 2)
        crop = pixels[:, :, top : top + rows, left : left + columns]
        interpolate(crop, (SIZE, SIZE), mode="bicubic", antialias=True)
    results.put(count / (time.perf_counter() - begin))


def repeated(index: ShardIndex, shards: int) -> ShardIndex:
    """An index of so many shards, all of which lie in the same few files."""
    times = -(-shards // len(index.shards))
    per_shard = {
        field.name: np.tile(getattr(index, field.name), times)
        for field in dataclasses.fields(index)
        if isinstance(getattr(index, field.name), np.ndarray)
    }
    return dataclasses.replace(index, shards=index.shards * times, **per_shard)


def first_batch_seconds(index: ShardIndex, first_step: int) -> float:
    """From an index in memory to the first batch, in this process."""
    begin = time.perf_counter()
    with closing(open_training(index, 0, first_step=first_step)) as stream:
        next(iter(stream.take(1)))
    return time.perf_counter() - begin


def order_cost(shard_samples: np.ndarray) -> tuple[float, float]:
    """Seconds and MB to the first batch of an order, and no more than that."""

    def first_batch() -> None:
        order = TrainingOrder(shard_samples, seed=0, global_batch_size=1024, num_lanes=8, window_shards=4)
        order.batch(0)

    begin = time.perf_counter()
    first_batch()
    elapsed = time.perf_counter() - begin
    tracemalloc.start()
    first_batch()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return elapsed, peak / 1e6


def worker_megabytes(index: ShardIndex, batches: int) -> float:
    """Resident memory of a worker in mid-run, above that of an interpreter that has imported torch."""
    bare = subprocess.run(
        [sys.executable, "-c", "import psutil, torch; print(psutil.Process().memory_info().rss)"],
        check=True,
        capture_output=True,
        text=True,
    )
    with closing(open_training(index, 1)) as stream:
        for _ in stream.take(batches):
            pass
        (worker,) = (child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE)
        used = worker.memory_info().rss
    return (used - int(bare.stdout)) / 1e6


def order_node_megabytes(shard_samples: np.ndarray) -> float:
    """Memory for the order on a node of 8 ranks with 4 workers each, all of which are at their first batch.

    One rank is run, as a process with forked workers; what these share counts once a rank.
    """
    order = TrainingOrder(shard_samples, seed=0, global_batch_size=1024, num_lanes=8, window_shards=4)
    context = get_context("fork")
    results, done = context.Queue(), context.Event()
    before = psutil.Process().memory_full_info().uss
    order.batch(0)

    def work(number: int) -> None:
        own = psutil.Process().memory_full_info().uss
        order.batch(number)
        results.put(psutil.Process().memory_full_info().uss - own)
        done.wait()

    workers = [context.Process(target=work, args=(number,)) for number in range(WORKERS_PER_RANK)]
    shared = psutil.Process().memory_full_info().uss - before
    for worker in workers:
        worker.start()
    own = sum(results.get() for _ in workers)
    done.set()
    for worker in workers:
        worker.join()
    return RANKS_PER_NODE * (shared + own + shard_samples.nbytes) / 1e6


def compare_loaders(folder: Path, index: ShardIndex, *, rounds: int, batches: int) -> dict[str, float]:
    """Rates of all loaders by kind and number of workers, as a table, and the ratios that count: the worse of both."""
    shard = next(path for path in sorted(folder.glob("*-train-*.tar")))
    jpegs = [sample["jpg"] for sample in wds.WebDataset(str(shard), shardshuffle=False)]
    timm = partial(timm_loader, folder)
    others = other_formats((jpegs * SHARDS)[: SHARDS * SAMPLES], folder / "others", stock_transform(), batch_size=BATCH)
    measured: dict[tuple[str, int], dict[str, list[float]]] = {}
    for workers in (1, 2):
        openers: dict[str, dict[str, Callable[[], Any]]] = {
            "training": {
                "effnet": partial(our_training, index, workers),
                "timm": partial(timm, workers, training=True, normalised=True),
                "timm, uint8": partial(timm, workers, training=True, normalised=False),
                "stock webdataset": partial(stock_webdataset, folder, workers),
                **{name: partial(opener, workers) for name, opener in others.items()},
            },
            "evaluation": {
                "effnet": partial(our_evaluation, index, workers),
                "timm": partial(timm, workers, training=False, normalised=True),
                "timm, uint8": partial(timm, workers, training=False, normalised=False),
            },
        }
        for kind, named in openers.items():
            contestants = {name: partial(images_per_second, opener, batches) for name, opener in named.items()}
            if kind == "training":
                contestants["bare decoding"] = partial(bare_images_per_second, jpegs, workers, batches)
            measured[kind, workers] = take_turns(contestants, rounds=rounds)
    rows = []
    ratios: dict[tuple[str, str], list[float]] = {}
    for (kind, workers), rates in measured.items():
        for name, values in rates.items():
            ratio = median_ratio(rates["effnet"], values)
            ratios.setdefault((kind, name), []).append(ratio)
            rows.append((f"{kind}, {workers} worker(s): {name}", f"{statistics.median(values):,.0f}", f"{ratio:.2f}"))
    report("Images a second", ("loader", "images/s", "effnet is … times that"), rows)
    return {
        "train_vs_timm_loader": min(ratios["training", "timm"]),
        "train_vs_timm_uint8": min(ratios["training", "timm, uint8"]),
        "train_vs_stock_webdataset": min(ratios["training", "stock webdataset"]),
        **{f"train_vs_{name.split()[-1]}": min(ratios["training", name]) for name in others},
        "train_vs_bare_decode": min(ratios["training", "bare decoding"]),
        "eval_vs_timm_loader": min(ratios["evaluation", "timm"]),
        "eval_vs_timm_uint8": min(ratios["evaluation", "timm, uint8"]),
    }


def measure_position(index: ShardIndex, *, rounds: int) -> dict[str, float]:
    """Resuming, and the order's cost."""
    large = repeated(index, 1_280_000 // SAMPLES)
    steps = len(large) // BATCH
    starts = {"0%": 0, "99%": steps * 99 // 100}
    times = take_turns(
        {name: partial(first_batch_seconds, large, step) for name, step in starts.items()}, rounds=rounds
    )
    million, billion = np.full(1_024, 1_250), np.full(BILLION_SHARDS, BILLION_SAMPLES)
    costs = {
        "order_1m": [order_cost(million) for _ in range(rounds)],
        "order_1b": [order_cost(billion) for _ in range(rounds)],
    }
    seconds, megabytes = (
        {name: statistics.median(values[part] for values in found) for name, found in costs.items()} for part in (0, 1)
    )
    return {
        "resume_99_vs_0": median_ratio(times["99%"], times["0%"]),
        "order_1m_ms": seconds["order_1m"] * 1e3,
        "order_1m_mb": megabytes["order_1m"],
        "order_1b_s": seconds["order_1b"],
        "order_1b_mb": order_node_megabytes(billion),
    }


TARGETS = {
    "train_vs_timm_loader": ">= 2.2",
    "train_vs_stock_webdataset": ">= 2.2",
    "train_vs_bare_decode": ">= 0.8",
    "eval_vs_timm_loader": ">= 1.3",
    "resume_99_vs_0": "<= 1.2",
    "order_1m_ms": "< 50",
    "order_1m_mb": "< 50",
    "order_1b_s": "< 2",
    "order_1b_mb": "< 500",
    "worker_mb": "<= 300",
}


def main() -> None:
    """Measure all, print a table and a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="3 rounds in place of 7: a few minutes on 2 cores")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    random.seed(0)
    rounds, batches = (3, 12) if arguments.quick else (7, 24)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_shards(folder, shards=SHARDS, samples=SAMPLES, different=DIFFERENT)
        index = build_index(expand(str(folder / "*-train-*.tar")))
        values = measure_position(index, rounds=rounds)
        values["worker_mb"] = worker_megabytes(index, batches)
        values = compare_loaders(folder, index, rounds=rounds, batches=batches) | values
    rows = [(name, f"{value:.4g}", TARGETS.get(name, "")) for name, value in values.items()]
    report(f"Medians of {rounds} rounds on {os.cpu_count()} cores", ("figure", "value", "target"), rows)
    finish(values)


if __name__ == "__main__":
    main()
