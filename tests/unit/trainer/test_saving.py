"""When a training run saves, what it saves, and what becomes of it when a save fails."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_config
from configs.run import RunDirectory
from tests.disks import fill, small_disk
from tests.integration.test_equivalence import assert_same
from tests.unit.trainer.runs import checkpoint, new_run, rows, train
from tests.unit.trainer.test_tracking import inspect
from trainer import saver, triggers
from trainer.checkpoint_files import CheckpointFile, read_manifest, verify
from trainer.checkpointing import Interrupted
from trainer.checkpoints import CheckpointDirectory
from trainer.saves import FAILURES, SaveFailedError
from trainer.triggers import SAVE, STOP

Overrides = Callable[..., list[str]]
STEPS = 17
CHECKPOINT_BYTES = 2_500_000


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(triggers, "LOOK_EVERY_S", 0.0)


@pytest.fixture
def run(toy_overrides: Overrides, tmp_path: Path) -> Callable[..., RunDirectory]:
    def make(**changes: object) -> RunDirectory:
        settings = {"trainer__max_epochs": 2, "checkpoint__every_n_epochs": 100, "checkpoint__keep_last": 100}
        return new_run(toy_overrides(**(settings | changes)), tmp_path)

    return make


def steps(run: RunDirectory) -> list[int]:
    found = sorted(path for path in run.checkpoints.glob("step-*"))
    assert all(verify(path) is None for path in found)
    return [int(path.name.removeprefix("step-")) for path in found]


def last_row(run: RunDirectory) -> int:
    """Of those written so far: the file may be there with no row in it yet, or with half of its last."""
    written = rows(run) if run.metrics_file.exists() else []
    return max((int(row["step"]) for row in written if row["step"]), default=0)


def when(happened: Callable[[], bool], act: Callable[[], Any]) -> threading.Thread:
    """Act from beside the training, as a person would."""

    def watch() -> None:
        deadline = time.monotonic() + 60
        while not happened() and time.monotonic() < deadline:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


# What is saved


def test_what_is_written_while_training_goes_on_is_the_state_of_its_step(
    run: Callable[..., RunDirectory], toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit, though two more steps are done before the first byte is written."""
    every = {"checkpoint__every_n_steps": 4, "optimizer__opt": "adamw"}
    settings = {"trainer__max_epochs": 2, "checkpoint__every_n_epochs": 100, "checkpoint__keep_last": 100}
    at_once = train(
        new_run(toy_overrides(checkpoint__asynchronous="false", **settings, **every), tmp_path / "synchronous")
    )
    beside, late, save = run(**every), [], CheckpointFile.save_checkpoint

    def after_two_more_steps(self: CheckpointFile, state: dict[str, Any], path: Any, **options: Any) -> None:
        goal, deadline = min(state["global_step"] + 2, STEPS), time.monotonic() + 60
        while last_row(beside) < goal and time.monotonic() < deadline:
            time.sleep(0.002)
        late.append((state["global_step"], last_row(beside)))
        save(self, state, path, **options)

    monkeypatch.setattr(CheckpointFile, "save_checkpoint", after_two_more_steps)
    train(beside)

    assert [step for step, _ in late] == [4, 8, 12, 16, 17]
    assert all(reached >= min(step + 2, STEPS) for step, reached in late)
    assert steps(at_once) == steps(beside) == [4, 8, 12, 16, 17]
    for step in steps(beside):
        first, second = checkpoint(at_once, step), checkpoint(beside, step)
        assert_same(first, second)
        assert first.keys() == second.keys()
        assert first["effnet"]["position"] == second["effnet"]["position"]
        assert torch.equal(first["effnet_train_sums"], second["effnet_train_sums"])


def test_the_manifest_says_what_was_reached_and_what_the_save_cost(trained: RunDirectory) -> None:
    after_validation = read_manifest(trained.checkpoints / "step-000000009")
    reached = {row["step"]: row["val/ema_top1"] for row in rows(trained) if row["val/ema_top1"]}
    assert after_validation["metrics"]["val/ema_top1"] == pytest.approx(float(reached["9"]))
    assert 0 <= after_validation["stall_s"] < 60
    assert 0 <= after_validation["write_s"] < 60

    assert read_manifest(trained.checkpoints / "step-000000008")["metrics"] == {}


# When


def test_by_minutes(run: Callable[..., RunDirectory]) -> None:
    found = train(run(checkpoint__every_n_minutes=0.0001))  # 6 ms: shorter than a step
    assert set(range(1, 9)) <= set(steps(found))


def test_minutes_count_from_a_checkpoint_of_any_kind(run: Callable[..., RunDirectory]) -> None:
    found = train(run(checkpoint__every_n_minutes=60, checkpoint__every_n_steps=5))
    assert steps(found) == [5, 10, 15, 17]


def test_by_epochs_and_always_at_the_end(run: Callable[..., RunDirectory]) -> None:
    assert steps(train(run(checkpoint__every_n_epochs=1))) == [9, 17]


def test_a_file_asks_for_a_checkpoint_and_training_goes_on(run: Callable[..., RunDirectory]) -> None:
    asked = run()
    thread = when(lambda: last_row(asked) >= 2, (asked.path / SAVE).touch)
    train(asked)
    thread.join()
    assert len(steps(asked)) == 2
    assert 2 <= steps(asked)[0] < STEPS
    assert not (asked.path / SAVE).exists()


def test_a_file_stops_the_run_with_a_checkpoint_and_the_next_attempt_goes_on(
    run: Callable[..., RunDirectory], trained: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    stopped = run()
    thread = when(lambda: last_row(stopped) >= 3, (stopped.path / STOP).touch)
    with caplog.at_level(logging.INFO, logger="effnet"), pytest.raises(Interrupted, match=r"STOP at step \d+: check"):
        train(stopped)
    thread.join()
    (step,) = steps(stopped)
    assert 3 <= step < STEPS
    assert f"{stopped.path / STOP} was honoured, and removed" in caplog.text

    train(stopped, attempt=1)
    assert_same(checkpoint(trained, STEPS), checkpoint(stopped, STEPS))


# Which are kept


def test_the_best_the_last_and_some_for_ever_are_kept(run: Callable[..., RunDirectory]) -> None:
    found = train(
        run(
            trainer__max_epochs=5,
            checkpoint__every_n_epochs=1,
            checkpoint__keep_last=1,
            checkpoint__keep_best=1,
            checkpoint__monitor="val/loss",
            checkpoint__keep_every_n_steps=16,
        )
    )
    values = {int(row["step"]): float(row["val/loss"]) for row in rows(found) if row["val/loss"]}
    ends = sorted(values)
    assert len(ends) == 5
    best = min(ends, key=lambda step: values[step])
    for_ever = {next(step for step in ends if step >= multiple) for multiple in (16, 32)}
    assert set(steps(found)) == {ends[-1], best} | for_ever


# When a save fails


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Where a run's checkpoints go, with room for three of them."""
    with small_disk(tmp_path / "toy" / "checkpoints", size_bytes=3 * CHECKPOINT_BYTES + 100_000) as place:
        yield place


def test_a_full_disk_is_said_tried_again_and_survived(
    disk: Path, run: Callable[..., RunDirectory], trained: RunDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    found = run(checkpoint__every_n_steps=5, checkpoint__keep_last=1, checkpoint__retry_pause_s=0.01)
    filler = fill(disk)

    def failed() -> bool:
        return found.metrics_file.exists() and any(row.get(FAILURES) for row in rows(found))

    thread = when(failed, filler.unlink)
    with caplog.at_level(logging.WARNING, logger="effnet"):
        train(found)
    thread.join()

    counts = [float(row[FAILURES]) for row in rows(found) if row[FAILURES]]
    assert counts[0] == 1
    assert counts[-1] == 0  # a success ends the count
    assert "checkpoint of step 5 failed (1 of 5 in a row)" in caplog.text
    assert "No space left on device" in caplog.text
    assert_same(checkpoint(trained, STEPS), checkpoint(found, STEPS))


def test_a_failed_save_is_shown_in_wandb(
    disk: Path, run: Callable[..., RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it for good
    found = run(checkpoint__every_n_steps=5, checkpoint__max_failures=1, tracking__mode="offline")
    fill(disk)
    with pytest.raises(SaveFailedError):
        train(found)

    (directory,) = found.wandb_dir.glob("offline-run-*")
    records = inspect(directory)
    (item,) = (each["history"]["item"] for each in records if FAILURES in each.get("history", {}).get("item", {}))
    assert item[FAILURES] == 1
    assert item["trainer/global_step"] >= 5
    alert, end = (record["alert"] for record in records if record["type"] == "alert")
    assert (alert["title"], end["title"]) == ("checkpoint failed", "training failed")
    assert "No space left on device" in alert["text"]


def test_training_stops_after_so_many_failures_and_names_the_last_good_one(
    disk: Path, run: Callable[..., RunDirectory]
) -> None:
    settings = {"trainer__max_epochs": 50, "checkpoint__retry_pause_s": 0.01, "checkpoint__max_failures": 2}
    found = run(checkpoint__every_n_steps=5, **settings)
    thread = when(lambda: (found.checkpoints / "LATEST").exists(), lambda: fill(disk))
    with pytest.raises(SaveFailedError) as caught:
        train(found)
    thread.join()

    text = str(caught.value)
    assert "2 saves in a row failed (checkpoint.max_failures), the last: " in text
    assert "No space left on device" in text
    newest = CheckpointDirectory(found.checkpoints).newest()
    assert newest is not None
    assert text.endswith(f"the last good checkpoint is {newest}")
    assert last_row(found) < 400  # long before the end
    assert not list(found.checkpoints.glob("*.tmp"))


@pytest.mark.parametrize("asynchronous", ["true", "false"])
def test_a_run_whose_last_checkpoint_is_not_written_does_not_end_well(
    asynchronous: str, disk: Path, run: Callable[..., RunDirectory]
) -> None:
    found = run(checkpoint__every_n_steps=10, checkpoint__asynchronous=asynchronous)
    thread = when(lambda: (found.checkpoints / "LATEST").exists(), lambda: fill(disk))
    with pytest.raises(SaveFailedError, match=r"step 17 .*No space left.*the last good one is .*step-000000010$"):
        train(found)
    thread.join()


def test_a_stop_whose_checkpoint_is_not_written_is_no_interruption(
    disk: Path, run: Callable[..., RunDirectory]
) -> None:
    found = run()
    fill(disk)
    (found.path / STOP).touch()
    with pytest.raises(SaveFailedError, match=r"No space left on device.*the last good one is none"):
        train(found)
    assert (found.path / STOP).exists()  # it is still to be honoured


def test_a_save_is_finished_though_training_ends_by_an_error(
    run: Callable[..., RunDirectory], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, save = run(checkpoint__every_n_steps=5), CheckpointFile.save_checkpoint

    def slowly(self: CheckpointFile, state: dict[str, Any], path: Any, **options: Any) -> None:
        time.sleep(1.0)
        save(self, state, path, **options)

    monkeypatch.setattr(CheckpointFile, "save_checkpoint", slowly)
    monkeypatch.setattr("trainer.module.EfficientNetModule.on_train_batch_start", _fail_at(6), raising=False)
    with pytest.raises(ZeroDivisionError):
        train(found)
    assert steps(found) == [5]


def _fail_at(step: int) -> Callable[..., None]:
    def on_train_batch_start(self: Any, batch: Any, batch_idx: int) -> None:
        assert self.trainer.global_step < step or 1 // 0

    return on_train_batch_start


def test_the_run_is_told_apart_from_another_experiment_in_the_same_place(toy_overrides: Overrides) -> None:
    """Settings of checkpoints are none of the experiment: a run goes on with others."""
    from configs.run import config_hash

    first, second = (
        load_config([], toy_overrides(checkpoint__keep_best=best, checkpoint__remote_dir=remote)).config
        for best, remote in ((1, None), (None, "s3://bucket/runs"))
    )
    assert config_hash(first) == config_hash(second)
