"""Loaders in real worker processes: the plan's batches in the plan's order, plain errors, workers that end."""

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from configs.batches import BatchLayout
from configs.problems import DataError
from configs.schema import Augmentation, Data
from datamodules.indexing.building import build_index
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.urls import expand
from datamodules.streaming.decode import Decode
from datamodules.streaming.loaders import Batch, Collate, EpochLoader, EvaluationLoader, TrainingStream, make_loader
from datamodules.streaming.order import TrainingOrder
from datamodules.streaming.plans import EvaluationPlan, TrainingPlan
from datamodules.streaming.source import ShardSource
from datamodules.streaming.substitution import Substituting
from datamodules.streaming.transforms import evaluation_transform, training_transform
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar

LAYOUT = BatchLayout(global_batch_size=12, micro_batch_size=6, world_size=1)


def data(num_workers: int, **changes: Any) -> Data:
    augmentation = Augmentation(auto_augment="rand-m9-mstd0.5")
    fields = {"train_shards": "train", "val_shards": "val", "num_workers": num_workers, "augmentation": augmentation}
    return Data.model_validate(fields | {"prefetch_batches": 2} | changes)


@contextmanager
def training_stream(index: ShardIndex, num_workers: int, *, first: int = 0, seed: int = 3) -> Iterator[TrainingStream]:
    order = TrainingOrder(index.shard_samples, seed=seed, global_batch_size=12, num_lanes=4, window_shards=2)
    source = ShardSource(index, TrainingPlan(order, LAYOUT, 0), first=first)
    decode = Decode(training_transform(data(0), 16), in_chans=3, num_classes=4, seed=seed)
    loader = make_loader(source, decode, data(num_workers), batch_size=LAYOUT.micro_batch_size, pin_memory=False)
    stream = TrainingStream(loader, first=first)
    try:
        yield stream
    finally:
        stream.close()


@contextmanager
def evaluation_loader(index: ShardIndex, num_workers: int, **changes: int) -> Iterator[EvaluationLoader]:
    plan = EvaluationPlan(**({"samples": len(index), "batch_size": 7, "global_rank": 0, "world_size": 1} | changes))
    decode = Decode(evaluation_transform(data(0), 16), in_chans=3, num_classes=4, seed=None)
    loader = make_loader(
        ShardSource(index, plan), decode, data(num_workers), batch_size=plan.batch_size, pin_memory=False
    )
    evaluation = EvaluationLoader(loader, plan)
    try:
        yield evaluation
    finally:
        evaluation.close()


def evaluated(index: ShardIndex, num_workers: int, **changes: int) -> list[Batch]:
    with evaluation_loader(index, num_workers, **changes) as loader:
        return list(loader)


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def train_index(shards: Path) -> ShardIndex:
    return build_index(expand(f"{shards}/toy-train-*.tar"))


@pytest.fixture(scope="module")
def val_index(shards: Path) -> ShardIndex:
    return build_index(expand(f"{shards}/toy-validation-*.tar"))


@pytest.fixture(scope="module")
def expected(train_index: ShardIndex) -> list[Batch]:
    """Two epochs and the seam to the third, loaded by this process."""
    with training_stream(train_index, 0) as stream:
        return list(stream.take(2 * 129 // 6 + 2))


def workers() -> list[psutil.Process]:
    return [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]


def test_a_batch_has_the_types_that_its_docstring_says(expected: list[Batch]) -> None:
    batch = expected[0]
    assert [tensor.dtype for tensor in batch] == [torch.uint8, torch.int64, torch.int64, torch.float32, torch.bool]
    assert [tuple(tensor.shape) for tensor in batch] == [(6, 3, 16, 16), (6,), (6,), (6,), (6,)]
    assert batch.weights.tolist() == [1] * 6
    image = torch.zeros(1, 2, 2, dtype=torch.uint8)
    large = Collate()([(image, 3, 2**40, 0.0, False)])
    assert (large.samples.tolist(), large.weights.dtype) == ([2**40], torch.float32)


def test_batches_are_full_across_the_seam_of_epochs_and_no_sample_is_lost(expected: list[Batch]) -> None:
    assert all(len(batch.samples) == 6 for batch in expected)
    samples = torch.cat([batch.samples for batch in expected]).tolist()
    assert min(samples.count(sample) for sample in range(129)) == 2


def test_a_batch_is_there_as_soon_as_its_samples_are(train_index: ShardIndex, val_index: ShardIndex) -> None:
    """The sample after it may be in a shard that is yet to come from a server."""
    decoded = []
    order = TrainingOrder(train_index.shard_samples, seed=3, global_batch_size=12, num_lanes=4, window_shards=2)
    evaluation = EvaluationPlan(samples=8, batch_size=6, global_rank=0, world_size=1)
    for index, plan in ((train_index, TrainingPlan(order, LAYOUT, 0)), (val_index, evaluation)):
        decode = Decode(evaluation_transform(data(0), 16), in_chans=3, num_classes=4, seed=None)

        def counted(sample: dict[str, Any], decode: Decode = decode) -> Any:
            decoded.append(sample["__key__"])
            return decode(sample)

        batches = iter(make_loader(ShardSource(index, plan), counted, data(0), batch_size=6, pin_memory=False))
        decoded.clear()
        assert len(next(batches)[1]) == len(decoded) == 6
    assert [len(batch[1]) for batch in batches] == [2]  # the rest of the evaluation


def test_targets_are_those_of_the_samples(expected: list[Batch], train_index: ShardIndex) -> None:
    for batch in expected:
        np.testing.assert_array_equal(batch.targets, train_index.labels[batch.samples.numpy()])


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_any_number_of_workers_gives_the_same_batches_in_the_same_order(
    num_workers: int, train_index: ShardIndex, expected: list[Batch]
) -> None:
    with training_stream(train_index, num_workers) as stream:
        found = list(stream.take(len(expected)))
        assert stream.position == len(expected)
    assert_equal(found, expected)
    # A descriptor for each small column would be a wait for each.
    assert not any(column.is_shared() for batch in found for column in batch[1:])
    assert [column.dtype for column in found[0]] == [column.dtype for column in expected[0]]


@pytest.mark.parametrize(("num_workers", "first"), [(0, 5), (2, 21), (3, 22), (2, 43)])
def test_a_stream_begun_anywhere_gives_the_same_rest(
    num_workers: int, first: int, train_index: ShardIndex, expected: list[Batch]
) -> None:
    with training_stream(train_index, num_workers, first=first) as stream:
        assert_equal(list(stream.take(len(expected) - first)), expected[first:])


def test_epochs_are_taken_one_after_the_other_from_one_stream(train_index: ShardIndex, expected: list[Batch]) -> None:
    with training_stream(train_index, 2) as stream:
        running = {process.pid for process in workers()}
        found = []
        for length in (22, 21, 2):
            epoch = EpochLoader(stream, length)
            assert len(epoch) == length
            found += list(epoch)
        assert {process.pid for process in workers()} == running
    assert_equal(found, expected)


def test_workers_end_with_their_stream(train_index: ShardIndex) -> None:
    before = len(workers())
    with training_stream(train_index, 2) as stream:
        next(stream.take(1))
        assert len(workers()) == before + 2
    assert len(workers()) == before


def test_workers_that_nothing_holds_any_more_end_at_once(
    train_index: ShardIndex, val_index: ShardIndex, damaged: ShardIndex
) -> None:
    before = len(workers())
    gc.collect()
    gc.disable()  # an error must not hold on to its loader until a collection, which then waits for each worker
    try:
        for index in (val_index, damaged):
            with suppress(DataError):
                list(unclosed(index))
            assert len(workers()) == before
        next(iter(unclosed(val_index)))
        assert len(workers()) == before
        for batches in (0, 1, 5):
            list(unclosed_stream(train_index).take(batches))
            assert len(workers()) == before
    finally:
        gc.enable()


def unclosed_stream(index: ShardIndex) -> TrainingStream:
    """As in training: with memory that is used again, and with substitutes."""
    order = TrainingOrder(index.shard_samples, seed=3, global_batch_size=12, num_lanes=4, window_shards=2)
    source = ShardSource(index, TrainingPlan(order, LAYOUT, 0))
    decode = Decode(training_transform(data(0), 16), in_chans=3, num_classes=4, seed=3)
    substituting = Substituting(decode, source)
    return TrainingStream(
        make_loader(source, substituting, data(2), batch_size=6, pin_memory=False, image_bytes=3 * 16 * 16), first=0
    )


def unclosed(index: ShardIndex) -> EvaluationLoader:
    plan = EvaluationPlan(samples=len(index), batch_size=7, global_rank=0, world_size=1)
    decode = Decode(evaluation_transform(data(0), 16), in_chans=3, num_classes=4, seed=None)
    return EvaluationLoader(
        make_loader(ShardSource(index, plan), decode, data(2), batch_size=7, pin_memory=False), plan
    )


LEAVES_WORKERS = """
import sys
from pathlib import Path
from datamodules.indexing.building import build_index
from tests.unit.datamodules.streaming.test_loaders import training_stream, unclosed
from datamodules.indexing.urls import expand
index = build_index(expand(sys.argv[1]))
loader = unclosed(index)
context = training_stream(index, 2)
stream = context.__enter__()
kept = [loader, stream, next(iter(loader)), next(stream.take(1))]
kept.append(kept)  # as in a traceback, or Lightning's trainer and module
raise SystemExit(7)
"""


def test_a_process_that_fails_with_loaders_open_still_ends(shards: Path) -> None:
    """multiprocessing ends its children by SIGTERM, and waits for them without limit."""
    command = [sys.executable, "-c", LEAVES_WORKERS, f"{shards}/toy-train-*.tar"]
    done = subprocess.run(command, check=False, timeout=120, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (7, "")


def test_workers_outlive_the_signals_meant_for_the_training_process(
    train_index: ShardIndex, expected: list[Batch]
) -> None:
    before = {process.pid for process in workers()}
    with training_stream(train_index, 2) as stream:
        found = list(stream.take(2))
        pids = [str(process.pid) for process in workers() if process.pid not in before]
        assert len(pids) == 2
        for name in ("-INT", "-TERM", "-USR1"):
            subprocess.run(["kill", name, *pids], check=True)
        found += list(stream.take(20))
    assert_equal(found, expected[:22])


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_a_killed_worker_ends_training_with_a_word_of_it(num_workers: int, train_index: ShardIndex) -> None:
    before = {process.pid for process in workers()}
    # torch's handler of SIGCHLD may raise wherever this process is, in closing too
    found = r"worker process of the loader died|DataLoader worker \(pid\(s\) \d+\)|killed by"
    expected = pytest.raises(RuntimeError, match=found)
    with expected, training_stream(train_index, num_workers) as stream:
        next(stream.take(1))
        next(process for process in workers() if process.pid not in before).kill()
        list(stream.take(500))
    deadline = time.monotonic() + 60
    while {process.pid for process in workers()} != before:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_evaluation_gives_each_sample_once_in_every_epoch(num_workers: int, val_index: ShardIndex) -> None:
    with evaluation_loader(val_index, num_workers) as loader:
        assert len(loader) == 6
        first, second = list(loader), list(loader)
    assert torch.cat([batch.samples for batch in first]).tolist() == list(range(37))
    assert [len(batch.samples) for batch in first] == [7, 7, 7, 7, 7, 2]
    assert_equal(second, first)
    assert_equal(first, evaluated(val_index, 0))


def test_evaluation_left_half_way_begins_anew(val_index: ShardIndex) -> None:
    with evaluation_loader(val_index, 2) as loader:
        for _, _batch in zip(range(2), loader, strict=False):
            pass
        assert_equal(list(loader), evaluated(val_index, 0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_ranks_evaluate_each_sample_once_together(num_workers: int, val_index: ShardIndex) -> None:
    ranks = [evaluated(val_index, num_workers, global_rank=rank, world_size=5) for rank in range(5)]
    assert len({len(rank) for rank in ranks}) == 1
    counted = [s for rank in ranks for batch in rank for s in batch.samples[batch.weights == 1].tolist()]
    assert sorted(counted) == list(range(37))


@pytest.fixture
def damaged(tmp_path: Path) -> ShardIndex:
    """24 samples of which the 17th has half an image."""
    members = []
    for i in range(24):
        contents = picture(i, size=16)
        members += [
            (f"img_{i}.png", contents if i != 17 else contents[: len(contents) // 2]),
            (f"img_{i}.cls", b"1"),
        ]
    return build_index([write_tar(tmp_path / "a.tar", members)])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_ends_the_epoch_with_one_plain_message(num_workers: int, damaged: ShardIndex) -> None:
    with evaluation_loader(damaged, num_workers) as loader:
        iterator = iter(loader)
        assert [next(iterator).samples.tolist() for _ in range(2)] == [list(range(7)), list(range(7, 14))]
        with pytest.raises(DataError) as caught:
            next(iterator)
    message = str(caught.value)
    assert message.startswith(f"{damaged.shards[0]}: sample img_17.png: not a readable image (")
    assert "Traceback" not in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_vanishes_in_mid_run_ends_it_with_one_plain_message(num_workers: int, damaged: ShardIndex) -> None:
    with evaluation_loader(damaged, num_workers) as loader:
        damaged.shards[0].unlink()
        with pytest.raises(DataError) as caught:
            list(loader)
    assert str(caught.value) == f"{damaged.shards[0]}: No such file or directory"


ORPHAN = """
import os, sys, time
from datamodules.streaming.loaders import start_worker
parent = os.getpid()
if os.fork() == 0:
    while os.getppid() == parent:
        time.sleep(0.01)
    start_worker(parent, 0)
    os.write(1, b"at work")
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's word of a parent's end is Linux's")
def test_a_worker_whose_process_was_killed_before_it_began_ends_too() -> None:
    done = subprocess.run([sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, timeout=120, check=True)
    assert done.stdout == b""
