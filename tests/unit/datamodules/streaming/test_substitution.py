"""Bad samples in training: the next of the shard takes their place, the same one whoever reads; evaluation stops."""

import re
from contextlib import closing
from pathlib import Path

import pytest
import torch

from configs.batches import BatchLayout
from configs.problems import DataError
from configs.schema import Data
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import TrainingPlan
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import MAX_TRIES, Substituting
from datamodules.streaming.transforms import training_transform
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar

BAD = (3, 4, 11, 17)
STANDS_IN = {3: 5, 4: 5, 11: 0, 17: 18}
"""In shards of 12 and 10: the next good one, from the end around to the start."""


def write(path: Path, numbers: range, bad: tuple[int, ...]) -> Path:
    members = []
    for i in numbers:
        contents = picture(i, size=16)
        members += [(f"img_{i}.png", contents[:40] if i in bad else contents), (f"img_{i}.cls", str(i % 4).encode())]
    return write_tar(path, members)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ShardIndex:
    folder = tmp_path_factory.mktemp("damaged")
    return build_index([write(folder / "a.tar", range(12), BAD), write(folder / "b.tar", range(12, 22), BAD)])


def batches(index: ShardIndex, num_workers: int, count: int, *, world_size: int = 1, rank: int = 0) -> list[Batch]:
    data = Data(train_shards="train", val_shards="val", num_workers=num_workers, prefetch_batches=2)
    layout = BatchLayout(global_batch_size=4, micro_batch_size=2, world_size=world_size)
    order = TrainingOrder(index.shard_samples, seed=5, global_batch_size=4, num_lanes=2, window_shards=1)
    source = ShardSource(index, TrainingPlan(order, layout, rank))
    decode = Substituting(Decode(training_transform(data, 16), in_chans=3, num_classes=4, seed=5), source)
    loader = make_loader(source, decode, data, batch_size=2, pin_memory=False, image_bytes=768)
    with closing(TrainingStream(loader, first=0)) as stream:
        return list(stream.take(count))


@pytest.fixture(scope="module")
def epochs(index: ShardIndex) -> list[Batch]:
    """Two of 22 samples, in 11 steps of 2 micro-batches."""
    return batches(index, 0, 22)


def test_the_next_good_sample_of_the_shard_stands_in_and_is_marked(epochs: list[Batch], index: ShardIndex) -> None:
    samples = torch.cat([batch.samples for batch in epochs])
    marked = torch.cat([batch.substituted for batch in epochs])
    assert sorted(samples[marked].tolist()) == sorted(2 * list(STANDS_IN.values()))
    assert sorted(samples[~marked].tolist()) == sorted(2 * [i for i in range(22) if i not in BAD])
    assert torch.cat([batch.targets for batch in epochs]).tolist() == index.labels[samples.numpy()].tolist()
    assert torch.cat([batch.weights for batch in epochs]).tolist() == [1.0] * 44


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_make_no_difference(num_workers: int, index: ShardIndex, epochs: list[Batch]) -> None:
    for one, other in zip(batches(index, num_workers, 22), epochs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_ranks_make_no_difference(index: ShardIndex, epochs: list[Batch]) -> None:
    ranks = [batches(index, 0, 11, world_size=2, rank=rank) for rank in range(2)]
    together = [batch for step in zip(*ranks, strict=True) for batch in step]
    for one, other in zip(together, epochs, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shard_and_key_are_told(num_workers: int, index: ShardIndex, capfd: pytest.CaptureFixture[str]) -> None:
    batches(index, num_workers, 11)
    told = capfd.readouterr().err
    pattern = rf"warning: {re.escape(str(index.shards[0]))}: sample img_4\.png: not a readable image \(.+\); "
    assert re.search(pattern + r"sample img_5 takes its place\n", told)


@pytest.mark.parametrize("count", [3, MAX_TRIES + 5])
def test_a_shard_of_bad_samples_ends_training_with_a_plain_error(count: int, tmp_path: Path) -> None:
    index = build_index([write(tmp_path / "a.tar", range(count), tuple(range(count)))])
    with pytest.raises(DataError, match=rf"img_\d+\.png: not a readable image .*, nor is any of up to {MAX_TRIES}"):
        batches(index, 0, 1)


def test_other_errors_are_no_bad_samples(tmp_path: Path) -> None:
    index = build_index([write(tmp_path / "a.tar", range(12), ())])
    index.labels[:] = 7
    with pytest.raises(DataError, match=r"label 7, but data\.num_classes is 4"):
        batches(index, 0, 1)
