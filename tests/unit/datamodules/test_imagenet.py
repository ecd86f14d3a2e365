"""The data module where Lightning meets it: a stand-in for the trainer says rank, step and epoch, all else is real."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from configs.problems import DataError
from configs.schema import Data
from datamodules.imagenet import ImageNetDataModule
from datamodules.streaming.loaders import Batch
from tests.unit.datamodules.archives import write_samples, write_tar

SAMPLES, STEPS = 129, 9  # 129 samples in batches of 16: the first epoch ends in the ninth
Build = Callable[..., ImageNetDataModule]


@pytest.fixture
def build(shards: Path) -> Iterator[Build]:
    """Makes data modules, set up for a rank and step."""
    made: list[ImageNetDataModule] = []

    def make(
        *,
        rank: int = 0,
        world_size: int = 1,
        step: int = 0,
        epoch: int = 0,
        seed: int = 0,
        stage: str = "fit",
        **changes: Any,
    ) -> ImageNetDataModule:
        fields = {
            "train_shards": f"{shards}/toy-train-*.tar",
            "val_shards": f"{shards}/toy-validation-*.tar",
            "num_classes": 4,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "eval_batch_size": 8,
            "num_workers": 0,
            "num_lanes": 4,
            "shuffle_window_shards": 2,
        }
        module = ImageNetDataModule(Data.model_validate(fields | changes), seed=seed, image_size=16, in_chans=3)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=world_size, global_step=step, current_epoch=epoch
        )
        made.append(module)
        module.prepare_data()
        module.setup(stage)
        return module

    yield make
    for module in made:
        module.teardown("fit")


def train(module: ImageNetDataModule, epochs: int) -> list[Batch]:
    """What Lightning would train on up to the end of that many epochs."""
    trainer: Any = module.trainer
    batches = []
    for epoch in range(trainer.current_epoch, epochs):
        trainer.current_epoch = epoch
        loader = module.train_dataloader()
        batches += list(loader)
        trainer.global_step += len(loader) // module.layout.accumulate_grad_batches
    return batches


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[Batch]:
    """Three epochs on one rank, without workers."""
    data = Data(
        train_shards=f"{shards}/toy-train-*.tar",
        val_shards=f"{shards}/toy-validation-*.tar",
        num_classes=4,
        global_batch_size=16,
        micro_batch_size=4,
        num_workers=0,
        num_lanes=4,
        shuffle_window_shards=2,
    )
    module = ImageNetDataModule(data, seed=0, image_size=16, in_chans=3)
    module.trainer = SimpleNamespace(global_rank=0, local_rank=0, world_size=1, global_step=0, current_epoch=0)  # type: ignore[assignment]
    module.setup("fit")
    return train(module, 3)


def test_epochs_have_whole_batches_that_span_their_seams(build: Build, expected: list[Batch]) -> None:
    module = build()
    lengths = []
    for epoch, step in ((0, 0), (1, 9), (2, 17)):
        module.trainer.current_epoch, module.trainer.global_step = epoch, step  # type: ignore[union-attr, misc]
        module.teardown("fit")
        lengths.append(len(module.train_dataloader()) // 4)
    assert lengths == [9, 8, 8]  # 129, 258 and 387 samples are seen after 9, 17 and 25 steps
    assert len(expected) == 4 * 25
    samples = torch.cat([batch.samples for batch in expected]).tolist()
    assert min(samples.count(sample) for sample in range(SAMPLES)) == 3


@pytest.mark.parametrize(("world_size", "num_workers"), [(2, 0), (2, 2), (4, 0)])
def test_ranks_together_train_on_what_one_rank_does(
    world_size: int, num_workers: int, build: Build, expected: list[Batch]
) -> None:
    ranks = [train(build(rank=r, world_size=world_size, num_workers=num_workers), 3) for r in range(world_size)]
    accumulate = 4 // world_size
    found = [
        batch for step in range(25) for rank in ranks for batch in rank[step * accumulate : (step + 1) * accumulate]
    ]
    assert_equal(found, expected)


@pytest.mark.parametrize(
    ("step", "epoch", "world_size", "num_workers"), [(3, 0, 1, 0), (9, 1, 1, 2), (13, 1, 2, 0), (24, 2, 4, 0)]
)
def test_a_run_resumed_at_any_step_on_any_number_of_ranks_trains_on_the_same_rest(
    step: int, epoch: int, world_size: int, num_workers: int, build: Build, expected: list[Batch]
) -> None:
    where = {"step": step, "epoch": epoch, "world_size": world_size, "num_workers": num_workers}
    ranks = [train(build(rank=rank, **where), 3) for rank in range(world_size)]
    accumulate = 4 // world_size
    found = [
        batch
        for number in range(25 - step)
        for rank in ranks
        for batch in rank[number * accumulate : (number + 1) * accumulate]
    ]
    assert_equal(found, expected[4 * step :])


def test_an_epoch_broken_off_is_taken_up_at_the_trainers_step(build: Build, expected: list[Batch]) -> None:
    """After a load of a checkpoint in the same process, the stream stands elsewhere than the trainer."""
    module = build(num_workers=1)
    for batch, wanted in zip(module.train_dataloader(), expected[:10], strict=False):
        assert_equal([batch], [wanted])
    module.trainer.global_step = 1  # type: ignore[union-attr, misc]
    assert_equal(train(module, 1), expected[4 : 4 * STEPS])


def test_another_seed_is_another_order_with_the_same_samples(build: Build, expected: list[Batch]) -> None:
    other = train(build(seed=1), 1)
    assert [batch.samples.tolist() for batch in other] != [b.samples.tolist() for b in expected[: len(other)]]
    assert len({sample for batch in other for sample in batch.samples.tolist()}) == SAMPLES


@pytest.mark.parametrize("world_size", [1, 3, 40])
def test_validation_counts_each_sample_once_on_any_number_of_ranks(world_size: int, build: Build) -> None:
    loaders = [build(rank=rank, world_size=world_size).val_dataloader() for rank in range(world_size)]
    ranks = [list(loader) for loader in loaders]
    assert {len(rank) for rank in ranks} == {len(loaders[0])}
    counted = [s for rank in ranks for batch in rank for s in batch.samples[batch.weights == 1].tolist()]
    assert sorted(counted) == list(range(37))


# Position


def test_the_position_is_the_same_on_every_rank_and_fits_a_run_of_the_same_data(build: Build) -> None:
    module = build(rank=1, world_size=2, seed=5)
    module.train_dataloader()
    found = module.position(9)
    assert (found["epoch"], found["samples_consumed"], found["samples_seen"]) == (1, 144, 144)
    assert (found["index_hash"], found["val_index_hash"]) == (module.train_index.digest, module.val_index.digest)
    assert module.position(8) == found | {"epoch": 0, "samples_consumed": 128, "samples_seen": 128}
    assert build(rank=0, world_size=4, seed=5).position(9) == found
    assert module.resume(found, 9) == []


def test_a_position_of_other_data_or_batches_is_refused_unless_that_is_allowed(build: Build, tmp_path: Path) -> None:
    saved = build().position(20)
    for changes, listed in (
        ({"train_shards": str(write_samples(tmp_path / "a.tar", 100))}, "index_hash was"),
        ({"val_shards": str(write_samples(tmp_path / "b.tar", 100))}, "val_index_hash was"),
        ({"global_batch_size": 32}, "global_batch_size was 16, is 32"),
        ({"seed": 1}, "seed was 0, is 1"),
        ({"num_lanes": 8}, "num_lanes was 4, is 8"),
        ({"shuffle_window_shards": 3}, "shuffle_window_shards was 2, is 3"),
    ):
        other = build(**changes)
        with pytest.raises(DataError, match=listed):
            other.resume(saved, 20)
        assert any(listed in note for note in other.resume(saved, 20, allow_changes=True))
        assert other.samples_seen(20) == other.position(20)["samples_seen"] == 320


def test_the_next_batch_comes_before_what_a_position_says(build: Build) -> None:
    module = build(seed=5)
    module.next_batch = 10
    module.setup("fit")
    assert module.order.passed_over == 10
    saved = module.position(6) | {"batches_passed_over": 2, "samples_consumed": 128, "epoch": 0}
    module.resume(saved, 6)
    assert module.order.passed_over == 4


# Mistakes


def test_labels_out_of_range_are_a_data_error_in_either_split(build: Build, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"labels of .*toy-train-00000\.tar .* go from 0 to 3, but .*num_classes is 3"):
        build(num_classes=3)
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"j"), ("a.cls", b"9")])
    with pytest.raises(DataError, match=r"labels of .*a\.tar .* go from 9 to 9"):
        build(val_shards=str(path))


def test_a_sample_without_a_label_is_a_data_error(build: Build, tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", [("a.jpg", b"j"), ("a.cls", b"1"), ("b.jpg", b"j")])
    with pytest.raises(DataError, match=r"go from -1 to 1, .* \(-1: a sample without a label\)"):
        build(train_shards=str(path))


def test_an_epoch_smaller_than_a_global_batch_is_refused_for_training_only(build: Build, tmp_path: Path) -> None:
    path = write_samples(tmp_path / "a.tar", 15)
    with pytest.raises(DataError, match=r"data\.global_batch_size is 16, but there are only 15 training samples"):
        build(train_shards=str(path))
    build(train_shards=str(path), stage="validate")
    build(train_shards=str(write_samples(tmp_path / "b.tar", 16)))


def test_missing_and_damaged_shards_are_data_errors(build: Build, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        build(train_shards=f"{tmp_path}/gone.tar")
    (tmp_path / "a.tar").write_bytes(b"x" * 2000)
    with pytest.raises(DataError, match=r"a\.tar: not a"):
        build(val_shards=f"{tmp_path}/a.tar")


def test_preparing_scans_and_setting_up_reads(build: Build, tmp_path: Path) -> None:
    module = build(index_dir=str(tmp_path))
    assert len(os.listdir(tmp_path)) == 2
    scanned: list[int] = []
    module.index_progress = scanned.append
    module.setup("fit")
    assert scanned == []
    for file in tmp_path.iterdir():
        file.unlink()
    module.prepare_data()
    assert len(scanned) == 7
