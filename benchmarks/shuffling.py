"""How well samples are mixed: ours beside a full shuffle and WebDataset's `shuffle(5000)`, on shards sorted by class.

Sorted shards are the hardest case: `effnet shards build` shuffles, and then all do as well as a full shuffle. No image
is read; WebDataset's own stages carry the numbers of samples. Each of its workers has its own buffer, and a rank's
batch comes out of one of them. Measured:

- labels: different labels in a global batch, and the largest share that one label has of it;
- position: correlation between a sample's place in one epoch and in the next, mean of five pairs of epochs. Shards move
  whole, so chance alone makes it about 1 / sqrt(5 x shards);
- reunions: of the pairs of samples that are in one batch, how many are together again in the next epoch, times what
  chance would give.

    python -m benchmarks.shuffling [--quick] [--picture FILE.png]
"""

import argparse
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import webdataset as wds
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from benchmarks.measure import finish, report
from datamodules.streaming.order import TrainingOrder, permutation

GLOBAL_BATCH, SAMPLES_PER_SHARD, CLASSES, WORKERS, BUFFER = 256, 1000, 1000, 4, 5000
EPOCHS = 6
Int64 = NDArray[np.int64]
Epoch = Callable[[int], Int64]
"""From the number of an epoch to its samples in order, (samples,)."""


def ours(shards: int, num_lanes: int, window_shards: int) -> Epoch:
    """The order of `datamodules/streaming/order.py`."""
    sizes = np.full(shards, SAMPLES_PER_SHARD, dtype=np.int64)
    order = TrainingOrder(
        sizes, seed=0, global_batch_size=GLOBAL_BATCH, num_lanes=num_lanes, window_shards=window_shards
    )

    def epoch(number: int) -> Int64:
        steps = range(order.epoch_end(number), order.epoch_end(number + 1))
        return np.concatenate([order.batch(step)[0] for step in steps])

    return epoch


def full(shards: int) -> Epoch:
    """A permutation of all samples."""
    return lambda number: permutation(shards * SAMPLES_PER_SHARD, 1, number)


def stock(shards: int, world_size: int) -> Epoch:
    """WebDataset's: shards shuffled and dealt to the workers of all ranks, each with a buffer of its own."""

    def expanded(source: Iterator[int]) -> Iterator[int]:
        for shard in source:
            yield from range(shard * SAMPLES_PER_SHARD, (shard + 1) * SAMPLES_PER_SHARD)

    def epoch(number: int) -> Int64:
        shuffled = permutation(shards, 2, number).tolist()
        pipes = world_size * WORKERS
        micro_batch = GLOBAL_BATCH // world_size
        per_pipe = [
            iter(wds.DataPipeline(partial(iter, shuffled[pipe::pipes]), expanded, wds.shuffle(BUFFER)))
            for pipe in range(pipes)
        ]
        batches = []
        for step in range(shards * SAMPLES_PER_SHARD // GLOBAL_BATCH):
            for rank in range(world_size):
                pipe = per_pipe[rank * WORKERS + step % WORKERS]
                batches += [sample for _, sample in zip(range(micro_batch), pipe, strict=False)]
        return np.array(batches, dtype=np.int64)

    return epoch


def measure(epoch: Epoch, samples: int) -> dict[str, float]:
    """The figures of one contestant; see the module's docstring."""
    epochs = [epoch(number) for number in range(EPOCHS)]
    batches = epochs[0][: len(epochs[0]) // GLOBAL_BATCH * GLOBAL_BATCH].reshape(-1, GLOBAL_BATCH)
    labels = batches * CLASSES // samples
    counts = [np.unique(row, return_counts=True)[1] for row in labels]
    places = np.full((EPOCHS, samples), -1, dtype=np.int64)
    for place, order in zip(places, epochs, strict=True):
        place[order] = np.arange(len(order))
    seen = (places >= 0).all(axis=0)
    correlations = [np.corrcoef(places[number : number + 2, seen])[0, 1] for number in range(EPOCHS - 1)]
    next_batch = places[1] // GLOBAL_BATCH
    again = 0
    for row in batches:
        repeats = np.unique(next_batch[row[seen[row]]], return_counts=True)[1]
        again += int((repeats * (repeats - 1) // 2).sum())
    pairs = len(batches) * GLOBAL_BATCH * (GLOBAL_BATCH - 1) // 2
    by_chance = (GLOBAL_BATCH - 1) / (samples - 1)
    return {
        "labels": statistics.fmean(map(len, counts)),
        "largest": statistics.fmean(count.max() for count in counts) / GLOBAL_BATCH,
        "position": float(np.mean(correlations)),
        "reunions": again / pairs / by_chance,
    }


def draw(contestants: dict[str, Epoch], samples: int, file: Path) -> None:
    """For each contestant, the label of each sample against its place in an epoch: grey noise is what is wanted."""
    figure = Figure(figsize=(10, 2.6 * ((len(contestants) + 1) // 2)), layout="constrained")
    grid = figure.subplots((len(contestants) + 1) // 2, 2, sharex=True, sharey=True, squeeze=False).flatten()
    for axes, (name, epoch) in zip(grid, contestants.items(), strict=False):
        order = epoch(0)
        shown = np.linspace(0, len(order) - 1, 20_000).astype(int)
        axes.scatter(shown // GLOBAL_BATCH, order[shown] * CLASSES // samples, s=0.6, linewidths=0, color="#1f4e79")
        axes.set_title(name, loc="left", fontsize=9)
    for axes in grid[len(contestants) :]:
        axes.set_visible(False)
    figure.supxlabel("step of the epoch", fontsize=9)
    figure.supylabel("label", fontsize=9)
    FigureCanvasAgg(figure).print_png(str(file))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="64 shards instead of 256")
    parser.add_argument("--picture", type=Path, help="draw label against step into this file")
    arguments = parser.parse_args()
    shards = 64 if arguments.quick else 256
    samples = shards * SAMPLES_PER_SHARD
    contestants = {
        "full shuffle": full(shards),
        "ours, 8 lanes, windows of 4": ours(shards, 8, 4),
        "ours, 8 lanes, windows of 16": ours(shards, 8, 16),
        "ours, 32 lanes, windows of 4": ours(shards, 32, 4),
        "WebDataset, 8 ranks": stock(shards, 8),
        "WebDataset, 1 rank": stock(shards, 1),
    }
    found = {name: measure(epoch, samples) for name, epoch in contestants.items()}
    report(
        f"{samples:,} samples in {shards} shards sorted by class, {CLASSES} classes, batches of {GLOBAL_BATCH}",
        ["", "labels in a batch", "largest share", "correlation of position", "reunions / chance"],
        [
            [name, f"{v['labels']:.1f}", f"{v['largest']:.3f}", f"{v['position']:+.3f}", f"{v['reunions']:.2f}"]
            for name, v in found.items()
        ],
    )
    if arguments.picture is not None:
        draw(contestants, samples, arguments.picture)
    keys = {"full": "full shuffle", "ours": "ours, 8 lanes, windows of 4", "wds": "WebDataset, 8 ranks"}
    finish({f"{figure}_{key}": found[name][figure] for key, name in keys.items() for figure in found[name]})


if __name__ == "__main__":
    main()
