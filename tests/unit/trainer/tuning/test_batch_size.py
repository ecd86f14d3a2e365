"""Which sizes are tried, and what a trial measures."""

import resource
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from configs.load import load_config
from configs.schema import Config
from trainer import undoing
from trainer.tuning.batch_size import largest_that_fits, suggested, try_ascending
from trainer.tuning.trial import StepTimes, Trial, try_size

Overrides = Callable[..., list[str]]


def trial(size: int, images_per_s: float | None) -> Trial:
    reason = "out of memory" if images_per_s is None else None
    return Trial(micro_batch_size=size, accumulate_grad_batches=1, images_per_s=images_per_s, reason=reason)


# The search


def test_nothing_is_tried_above_a_size_that_runs_out_of_memory() -> None:
    trials = try_ascending([8, 1, 4, 2], lambda size: trial(size, None if size >= 4 else 1.0))

    assert [each.micro_batch_size for each in trials] == [1, 2, 4]
    assert [each.trains for each in trials] == [True, True, False]


@pytest.mark.parametrize(("fitting", "failing"), [(1, None), (64, None), (64, 128), (96, 4096), (100, 101)])
@pytest.mark.parametrize("capacity", [1, 5, 100, 101, 777, 5000])
def test_the_largest_size_that_fits_is_found_to_three_percent(fitting: int, failing: int | None, capacity: int) -> None:
    fitting = min(fitting, capacity)
    failing = failing if failing is not None and failing > capacity else None
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= capacity

    found = largest_that_fits(fits, fitting=fitting, failing=failing, limit=3001)
    reachable = min(capacity, 3000)
    assert found <= reachable
    assert reachable - found <= max(found // 32, 4)
    assert len(tried) == len(set(tried)) <= 20
    assert all(size % 2 == 0 and size <= 3000 for size in tried)


def test_the_fastest_is_suggested_unless_the_configured_one_is_as_fast() -> None:
    trials = [trial(8, 50), trial(16, 98), trial(32, 100), trial(64, None)]

    assert suggested(trials, configured=16) == trials[1]
    assert suggested(trials, configured=8) == trials[2]
    assert suggested(trials, configured=64) == trials[2]
    assert suggested(trials[-1:], configured=64) is None


def test_speed_counts_the_optimizers_step_once_for_all_accumulated_micro_batches() -> None:
    times = StepTimes()
    times.accumulating_s, times.stepping_s = [9.0, 1.0, 1.0], [3.0, 3.0, 0.1]

    assert times.images_per_s(8, 1) == pytest.approx(8 / 3)
    assert times.images_per_s(8, 4) == pytest.approx(32 / (3 * 1 + 3))


# Trials


@pytest.fixture
def own_process() -> Iterator[Executor]:
    """A process whose memory no other test has been at: on the CPU it keeps what it has had."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        yield process


def test_a_trial_trains_with_that_size_and_measures_time_and_memory(
    toy_overrides: Overrides, own_process: Executor
) -> None:
    config = load_config([], toy_overrides()).config
    small, large = (own_process.submit(try_size, config, *each, steps=1).result() for each in ((2, 8), (64, None)))

    for each in (small, large):
        assert each.trains
        assert each.images_per_s is not None
        assert each.images_per_s > 0
        assert each.peak_bytes is not None
        assert each.peak_bytes > 100e6
    assert large.peak_bytes - small.peak_bytes > 5e6  # 62 images of 64 x 64 more


def test_a_trial_times_what_a_gpu_does_to_undo_steps(toy_overrides: Overrides, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    put_back, end = undoing.Copies.put_back_unless, StepTimes.on_train_batch_end

    def undo(copies: undoing.Copies, good: torch.Tensor) -> None:
        events.append(f"undone: {not good}")
        put_back(copies, good)

    def time(times: StepTimes, *given: Any) -> None:
        events.append("timed")
        end(times, *given)

    monkeypatch.setattr(undoing, "runs_behind", lambda _: True)
    monkeypatch.setattr(undoing.Copies, "put_back_unless", undo)
    monkeypatch.setattr(StepTimes, "on_train_batch_end", time)
    assert try_size(load_config([], toy_overrides()).config, 8, None, steps=1).trains
    assert events == ["undone: False", "undone: False", "timed"] * 3  # weights and optimizer, in each step


def test_samples_that_are_repeated_need_not_divide_the_batch_of_a_trial(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides(data__augmentation__aug_repeats=2)).config

    assert try_size(config, 2, 8, steps=1).trains  # 4 samples in 4 lanes: each lane has one


def test_sizes_that_cuda_graphs_would_accumulate_are_not_tried(toy_overrides: Overrides) -> None:
    changes = {"trainer__accelerator": "auto", "trainer__devices": "auto", "trainer__compile": "reduce-overhead"}
    config = load_config([], toy_overrides(**changes)).config

    found = try_size(config, 8, 2, steps=1)
    assert found.reason == "CUDA graphs, and several micro-batches a step"
    assert not found.trains


def with_little_memory(config: Config) -> Trial:
    """A trial with 200 MB of address space more than the process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 200_000_000, hard))
    try:
        return try_size(config, 128, None, steps=1)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_too_little_memory_and_a_batch_too_small_for_batchnorm_are_findings(
    toy_overrides: Overrides, own_process: Executor
) -> None:
    config = load_config([], toy_overrides(data__image_size=256, loss__mixup_alpha=0, loss__cutmix_alpha=0)).config
    found = own_process.submit(with_little_memory, config).result()
    assert found.reason == "out of memory"
    assert (found.images_per_s, found.peak_bytes) == (None, None)

    before = set(psutil.Process().children())  # of other tests
    tiny = config.model_copy(update={"data": config.data.model_copy(update={"image_size": 32, "num_workers": 1})})
    assert try_size(tiny, 1, 16, steps=1).reason == "too few samples for BatchNorm"
    assert set(psutil.Process().children()) <= before  # no loader's worker outlives its trial
    assert try_size(tiny, 8, 2, steps=1).trains


@pytest.mark.gpu
def test_on_a_gpu_the_peak_is_the_allocators_and_a_size_that_does_not_fit_is_found(toy_overrides: Overrides) -> None:
    config = load_config([], toy_overrides(trainer__accelerator="cuda", data__image_size=224)).config
    total = torch.cuda.get_device_properties(0).total_memory
    small = try_size(config, 16, None, steps=1)
    assert small.peak_bytes is not None
    torch.cuda.set_per_process_memory_fraction(2 * small.peak_bytes / total)
    try:
        assert try_size(config, 128, None, steps=1).reason == "out of memory"
        assert try_size(config, 16, None, steps=1).peak_bytes == pytest.approx(small.peak_bytes, rel=0.05)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
