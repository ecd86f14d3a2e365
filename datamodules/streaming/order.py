"""The order of training samples: a pure function of seed and shard sizes, without world size, worker or micro-batch.

Each epoch the shards are permuted and laid end to end; that line of samples is cut into ``num_lanes`` lanes of equal
length (to within one sample); inside a lane, samples are shuffled within windows of a few shards. A lane goes on into
the next epoch where one ends, so lanes are endless. Global batch g takes the g-th run of ``global_batch_size /
num_lanes`` samples of every
lane: every batch is full, and every sample comes once an epoch, none dropped or repeated at the seam.

With repeated augmentation (``repeats`` above 1) a lane's run is that many times shorter and comes that often in the
batch, end to end. The lanes' epochs are then passes, of ``repeats`` epochs of training: an epoch keeps its steps.

Nothing is stored but the current windows: a billion samples cost no more than a million.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from configs.batches import epoch_end_step

ORDER_VERSION = 1
"""Changes whenever the same seed would give another order. A checkpoint of another version cannot go on exactly."""

Int64 = NDArray[np.int64]
_SHARDS, _WINDOW = 0, 1
_CACHED_WINDOWS_PER_LANE = 2


def permutation(size: int, *key: int) -> Int64:
    """A uniformly random permutation that depends on ``key`` alone.

    Built from the raw stream of a Philox bit generator, which NumPy keeps stable between versions;
    `Generator.permutation` is not (NEP 19).
    """
    raw = np.random.Philox(np.random.SeedSequence(key)).random_raw(size)
    return np.argsort(np.atleast_1d(raw), kind="stable").astype(np.int64)


@dataclass(frozen=True, eq=False)
class _Epoch:
    shards: Int64  # permuted shard numbers
    ends: Int64  # (shards + 1,) positions of the line at which each permuted shard begins, and the line's end
    lanes: Int64  # (num_lanes + 1,) positions at which each lane begins


@dataclass(frozen=True, eq=False)
class TrainingOrder:
    """Names the sample at each position of each global batch.

    Attributes:
        shard_samples: (shards,) int64, samples in each shard.
        seed: The run's seed.
        global_batch_size: Samples per optimizer step.
        num_lanes: Canonical lanes; divides global_batch_size.
        window_shards: Shards of a lane that are shuffled together.
        repeats: Times that each sample is in its global batch.
        passed_over: Global batches left out: optimizer step s takes batch s + passed_over.
    """

    shard_samples: Int64
    seed: int
    global_batch_size: int
    num_lanes: int
    window_shards: int
    repeats: int = 1
    passed_over: int = 0
    _epochs: "OrderedDict[int, _Epoch]" = field(default_factory=OrderedDict, repr=False)
    _windows: "OrderedDict[tuple[int, ...], Int64]" = field(default_factory=OrderedDict, repr=False)

    def __post_init__(self) -> None:
        if self.global_batch_size % self.num_lanes:
            raise ValueError(f"num_lanes {self.num_lanes} does not divide global_batch_size {self.global_batch_size}")
        if self.per_lane % self.repeats:
            raise ValueError(f"repeats {self.repeats} do not divide the {self.per_lane} samples of a lane in a batch")

    @cached_property
    def samples(self) -> int:
        """Samples of an epoch; so many images are in one with repeats too."""
        return int(self.shard_samples.sum())

    @property
    def per_lane(self) -> int:
        """Places of a global batch that belong to one lane."""
        return self.global_batch_size // self.num_lanes

    def epoch_end(self, epochs: int) -> int:
        """Optimizer steps after which ``epochs`` whole epochs have been seen, or passed over."""
        batches = epoch_end_step(epochs, samples=self.samples, global_batch_size=self.global_batch_size)
        return batches - self.passed_over

    def epochs_before(self, step: int) -> int:
        """Whole epochs seen, or passed over, after ``step`` optimizer steps."""
        return (step + self.passed_over) * self.global_batch_size // self.samples

    def batch(self, step: int, slots: tuple[int, int] | None = None) -> tuple[Int64, Int64]:
        """Samples of a step's global batch, or of the part of it that ``slots`` (half-open) names.

        Returns:
            Sample numbers and the pass over all samples that each belongs to, both (slots,) int64. Without repeats a
            pass is an epoch.
        """
        per_lane, distinct = self.per_lane, self.per_lane // self.repeats
        first, last = slots if slots is not None else (0, self.global_batch_size)
        parts = []
        for lane in range(first // per_lane, -(-last // per_lane)):
            low, high = max(first, lane * per_lane), min(last, (lane + 1) * per_lane)
            within = np.arange(low, high, dtype=np.int64) - lane * per_lane
            positions = within % distinct + (step + self.passed_over) * distinct
            parts.append(self._lane(lane, positions))
        samples, epochs = zip(*parts, strict=True)
        return np.concatenate(samples), np.concatenate(epochs)

    def repeat(self, slots: tuple[int, int]) -> Int64:
        """Which of its sample's repeats is in each of these places of a global batch, from 0; (slots,) int64."""
        return np.arange(*slots, dtype=np.int64) % self.per_lane // (self.per_lane // self.repeats)

    def _lane(self, lane: int, positions: Int64) -> tuple[Int64, Int64]:
        """Samples at positions of an endless lane.

        Lane l has had floor((e n + l) / lanes) samples before epoch e; these add up to e n over the lanes (Hermite's
        identity).
        """
        count, lanes = self.samples, self.num_lanes
        epochs = ((positions + 1) * lanes - 1 - lane) // count
        samples = np.empty_like(positions)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            within = positions[chosen] - (int(epoch) * count + lane) // lanes
            samples[chosen] = self._line(int(epoch), lane, within)
        return samples, epochs

    def _line(self, epoch: int, lane: int, within: Int64) -> Int64:
        """Samples at offsets in a lane's part of one epoch: find the window, undo its shuffle, look up the shard."""
        line = self._epoch(epoch)
        begin, end = int(line.lanes[lane]), int(line.lanes[lane + 1])
        first_shard = int(np.searchsorted(line.ends, begin, side="right")) - 1
        shard = np.searchsorted(line.ends, begin + within, side="right") - 1
        windows = (shard - first_shard) // self.window_shards
        samples = np.empty_like(within)
        for window in np.unique(windows):
            chosen = windows == window
            low_shard = first_shard + int(window) * self.window_shards
            high_shard = min(low_shard + self.window_shards, len(self.shard_samples))
            low, high = max(begin, int(line.ends[low_shard])), min(end, int(line.ends[high_shard]))
            shuffled = low + self._window((epoch, lane, int(window)), high - low)[begin + within[chosen] - low]
            source = np.searchsorted(line.ends, shuffled, side="right") - 1
            samples[chosen] = self._starts[line.shards[source]] + shuffled - line.ends[source]
        return samples

    @cached_property
    def _starts(self) -> Int64:
        starts = np.zeros(len(self.shard_samples), dtype=np.int64)
        np.cumsum(self.shard_samples[:-1], out=starts[1:])
        return starts

    def _epoch(self, epoch: int) -> _Epoch:
        line = self._epochs.get(epoch)
        if line is None:
            shards = permutation(len(self.shard_samples), self.seed, _SHARDS, epoch)
            ends = np.concatenate([[0], np.cumsum(self.shard_samples[shards])]).astype(np.int64)
            lane, count = np.arange(self.num_lanes, dtype=np.int64), self.samples
            lengths = ((epoch + 1) * count + lane) // self.num_lanes - (epoch * count + lane) // self.num_lanes
            line = _Epoch(shards, ends, np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
            self._epochs[epoch] = line
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        return line

    def _window(self, key: tuple[int, int, int], size: int) -> Int64:
        shuffle = self._windows.get(key)
        if shuffle is None:
            shuffle = self._windows[key] = permutation(size, self.seed, _WINDOW, *key)
            while len(self._windows) > _CACHED_WINDOWS_PER_LANE * self.num_lanes:
                self._windows.popitem(last=False)
        return shuffle


def evaluation_slice(samples: int, *, global_rank: int, world_size: int) -> tuple[int, int, int]:
    """A rank's share of the validation samples: first, last (half-open), and how many it pads to.

    Every rank gets the same padded length, so that all take the same number of steps; padding counts with weight 0.
    """
    length = -(-samples // world_size)
    first = min(global_rank * length, samples)
    return first, min(first + length, samples), length
