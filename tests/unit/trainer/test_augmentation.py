"""What the device does to images in training, and the count of samples that could not be read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.data.random_erasing import RandomErasing

from configs.problems import DataError
from datamodules.streaming.randomness import MICRO_BATCH, seed_everything
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar
from tests.unit.trainer.runs import new_run, rows, train
from tests.unit.trainer.test_module import spied

Overrides = Callable[..., list[str]]
PLAIN = {"loss__mixup_alpha": 0.0, "loss__cutmix_alpha": 0.0}


@pytest.mark.parametrize(("mode", "count"), [("const", 1), ("rand", 2), ("pixel", 3)])
def test_erasing_is_timms_and_draws_by_seed_step_and_micro_batch(
    mode: str, count: int, toy_overrides: Overrides
) -> None:
    erasing = {f"data__augmentation__random_erasing_{key}": value for key, value in (("mode", mode), ("count", count))}
    changes = {**PLAIN, **erasing, "data__augmentation__random_erasing_prob": 0.7}
    spy, module = spied(toy_overrides(trainer__max_steps=2, seed=5, **changes))
    theirs = RandomErasing(0.7, mode=mode, max_count=count, device="cpu")
    erased = 0
    for number, (batch, seen) in enumerate(zip(spy.batches, spy.inputs, strict=True)):
        seed_everything(5, MICRO_BATCH, number // 2, number % 2)
        plain = module.normalise(batch.images)
        assert torch.equal(seen, theirs(plain.clone()))
        erased += int((seen != plain).flatten(1).any(1).sum())
    assert 0 < erased < 32


def test_erasing_comes_before_mixing(toy_overrides: Overrides) -> None:
    spy, module = spied(toy_overrides(trainer__max_steps=1, data__augmentation__random_erasing_prob=1.0))
    assert module._mixup is not None
    seed_everything(0, MICRO_BATCH, 0, 0)
    erased = RandomErasing(1.0, mode="pixel", device="cpu")(module.normalise(spy.batches[0].images))
    assert torch.equal(spy.inputs[0], module._mixup(erased, spy.batches[0].targets)[0])


def test_without_erasing_nothing_is_drawn_for_it(toy_overrides: Overrides) -> None:
    spy, module = spied(toy_overrides(trainer__max_steps=1, **PLAIN))
    assert module._erasing is None
    assert torch.equal(spy.inputs[0], module.normalise(spy.batches[0].images))


@pytest.fixture
def damaged(tmp_path: Path) -> str:
    """64 samples, of which three cannot be read."""
    for shard in range(4):
        members = []
        for i in range(16 * shard, 16 * shard + 16):
            contents = picture(i, size=24)
            members += [
                (f"img_{i}.png", contents[:60] if i in (5, 20, 50) else contents),
                (f"img_{i}.cls", str(i % 4).encode()),
            ]
        write_tar(tmp_path / f"damaged-train-{shard}.tar", members)
    return f"{tmp_path}/damaged-train-*.tar"


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_samples_are_counted_in_the_metrics(
    num_workers: int, damaged: str, toy_overrides: Overrides, tmp_path: Path
) -> None:
    changes = {"data__train_shards": damaged, "data__max_bad_fraction": 0.1, "data__num_workers": num_workers}
    run = train(new_run(toy_overrides(trainer__max_epochs=2, **changes), tmp_path / "runs"))
    counts = [float(row["data/bad_samples"]) for row in rows(run) if row["train/loss"]]
    assert counts == sorted(counts)
    assert (counts[3], counts[7]) == (3, 6)


def test_too_many_bad_samples_end_a_run(damaged: str, toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"data__train_shards": damaged, "data__max_bad_fraction": 0.04}
    with pytest.raises(DataError, match=r"3 images could not be read, data\.max_bad_fraction = 0\.04 allows 2\.6"):
        train(new_run(toy_overrides(trainer__max_epochs=2, **changes), tmp_path / "runs"))


def test_with_no_bad_fraction_the_first_ends_a_run(damaged: str, toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"data__train_shards": damaged, "data__max_bad_fraction": 0.0}
    with pytest.raises(DataError, match=r"sample img_(5|20|50)\.png: not a readable image"):
        train(new_run(toy_overrides(trainer__max_epochs=2, **changes), tmp_path / "runs"))


def test_bad_samples_in_evaluation_are_an_error(damaged: str, toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"data__val_shards": damaged, "data__max_bad_fraction": 1.0}
    with pytest.raises(DataError, match=r"sample img_5\.png: not a readable image"):
        train(new_run(toy_overrides(trainer__max_epochs=1, **changes), tmp_path / "runs"))
