"""Going back, by itself or because a user wants it, together with all else that moves a run's steps and data."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import trainer.assembly
from configs.load import load_config
from configs.problems import ConfigError, DataError
from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, checkpoint, new_run, rows, train, weights
from tests.unit.trainer.test_nonfinite import BadGradient, batch
from tests.unit.trainer.test_resuming import anew, choose
from trainer.checkpoint_files import MANIFEST
from trainer.checkpoints import LATEST, QUARANTINE, SUPERSEDED
from trainer.rollback import RollBack, Rollbacks

Overrides = Callable[..., list[str]]
Break = Callable[[int | None], None]


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Break:
    """Has the gradient go bad after so many steps from now on."""
    monkeypatch.setattr(trainer.assembly, "EfficientNetModule", BadGradient)
    monkeypatch.setattr(BadGradient, "seen", [], raising=False)

    def at(step: int | None) -> None:
        monkeypatch.setattr(BadGradient, "at", step)

    return at


@pytest.fixture
def overrides(toy_overrides: Overrides) -> Overrides:
    """Twelve steps, each of which is saved; the first epoch has nine. Goes back at the first bad step."""

    def changed(**changes: object) -> list[str]:
        settings = {"trainer__max_steps": 12, "checkpoint__every_n_steps": 1, "checkpoint__keep_last": 100}
        return toy_overrides(**settings | {"fault__max_skipped_steps": 0} | changes)

    return changed


def goes_back(run: RunDirectory, breaks: Break, *, at: int, attempt: int = 0) -> RunDirectory:
    """Train until the run goes back."""
    breaks(at)
    with pytest.raises(RollBack):
        train(run, attempt=attempt)
    breaks(None)
    return run


def first_batch() -> list[int]:
    """Samples of the first step of the latest training."""
    step = BadGradient.seen[0][0]
    return [sample for at, samples in BadGradient.seen if at == step for sample in samples]


def test_a_run_that_goes_back_to_its_start_past_an_epoch_goes_on_in_the_next_one(
    breaks: Break, overrides: Overrides, tmp_path: Path
) -> None:
    never = {"checkpoint__every_n_steps": None, "checkpoint__every_n_epochs": 100, "trainer__max_steps": None}
    settings = overrides(**never)
    run = goes_back(new_run(settings, tmp_path), breaks, at=11)
    train(run, attempt=1)

    assert first_batch() == batch(settings, 12)
    # Three epochs of 129 samples are 25 batches; the second ends in the 17th.
    assert [int(row["step"]) for row in rows(run) if row["train/loss"]] == list(range(1, 14))
    assert [int(row["step"]) for row in rows(run) if row["val/loss"]] == [5, 13]


def test_a_user_who_goes_back_forgets_what_was_passed_over_later(
    breaks: Break, overrides: Overrides, tmp_path: Path
) -> None:
    settings = overrides()
    run = goes_back(new_run(settings, tmp_path), breaks, at=8)
    train(run, attempt=1)
    anew(run, f"resume={run.checkpoints / 'step-000000003'}")
    assert choose(run, run.load_config()).next_batch is None
    # Killed at once; the next attempt is told nothing.
    anew(run, "resume=auto")
    train(run, attempt=2)
    assert first_batch() == batch(settings, 3)
    assert checkpoint(run, 12)["effnet"]["position"]["batches_passed_over"] == 0

    # From there it goes back by itself as ever, and has its number of times anew.
    anew(run, f"resume={run.checkpoints / 'step-000000004'}")
    goes_back(run, breaks, at=4, attempt=3)
    assert Rollbacks.read(run.rollbacks_file).count == 1
    train(run, attempt=4)
    assert first_batch() == batch(settings, 5)
    assert [int(row["step"]) for row in rows(run) if row["train/loss"]] == list(range(1, 13))


def test_data_is_passed_over_in_batches_of_the_size_that_it_is_counted_in(
    breaks: Break, overrides: Overrides, tmp_path: Path
) -> None:
    run = goes_back(new_run(overrides(), tmp_path), breaks, at=6)  # the next batch is the 7th: samples 112 and on
    anew(run, "data.global_batch_size=32", "resume.allow_changes=true")
    train(run, attempt=1)

    assert first_batch() == batch(overrides(data__global_batch_size=32), 4)


def test_a_checkpoint_that_was_moved_and_linked_is_the_runs_own(
    breaks: Break, overrides: Overrides, tmp_path: Path
) -> None:
    run = goes_back(new_run(overrides(), tmp_path), breaks, at=5)
    train(run, attempt=1)
    for step in (11, 12):
        moved = run.checkpoints / f"step-0000000{step}"
        moved.rename(tmp_path / moved.name)
        moved.symlink_to(tmp_path / moved.name)
    assert choose(run, run.load_config()).step == 12

    anew(run, "checkpoint.keep_last=1", "checkpoint.keep_best=null", "trainer.max_steps=13")
    train(run, attempt=2)
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [LATEST, "step-000000013"]
    assert (tmp_path / "step-000000012" / MANIFEST).exists()


def test_what_a_user_has_copied_is_never_removed(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    copy = run.checkpoints / "step-000000012-before-the-change"
    (run.checkpoints / "step-000000012").rename(copy)
    Rollbacks.read(run.rollbacks_file).add(before_step=11, next_batch=14)

    assert choose(run, run.load_config()).step == 10
    assert (copy / MANIFEST).exists()
    assert not (run.checkpoints / "step-000000011").exists()


def test_a_rewind_that_was_cut_off_removes_nothing(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    Rollbacks.read(run.rollbacks_file).rewind(10, resume=str(run.checkpoints / "step-000000010"))

    assert choose(run, run.load_config()).step == 10
    assert sorted(path.name for path in (run.checkpoints / SUPERSEDED).iterdir()) == [
        "step-000000011",
        "step-000000012",
    ]
    assert run.latest_checkpoint() == "step-000000010"


def test_settings_that_were_changed_are_changed_back_by_going_back(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=13)
    train(anew(run, "optimizer.lr=0.001", "trainer.max_steps=15", "resume.allow_changes=true"), attempt=1)
    back = f"resume={run.checkpoints / 'step-000000012'}"
    anew(run, "optimizer.lr=0.02", "trainer.max_steps=null", back, "resume.allow_changes=false")
    train(run, attempt=2)

    assert not changed(weights(trained, 17), weights(run, 17))


def test_a_command_that_went_back_goes_on_from_the_newest_whatever_commands_were_in_between(
    trained: RunDirectory, tmp_path: Path
) -> None:
    run = as_killed_after(trained, tmp_path, step=17)
    back = f"resume={run.checkpoints / 'step-000000005'}"
    train(anew(run, back, "trainer.max_steps=8"), attempt=1)
    train(anew(run, "resume=auto", "trainer.max_steps=10"), attempt=2)
    assert run.goes_back(load_config([str(run.config_file)], [back]).config) is False
    train(anew(run, back, "trainer.max_steps=12"), attempt=3)
    attempts = [row["attempt"] for row in rows(run) if row["train/loss"]]
    assert attempts == ["0"] * 5 + ["1"] * 3 + ["2"] * 2 + ["3"] * 2


@pytest.mark.parametrize(("before", "after"), [(0.0, 0.01), (0.01, 0.0)])
def test_weight_decay_cannot_begin_or_end_on_the_way(
    before: float, after: float, toy_overrides: Overrides, tmp_path: Path
) -> None:
    """The optimizer's state is of one group of parameters without, of two with it."""
    run = train(new_run(toy_overrides(optimizer__weight_decay=before, trainer__max_steps=1), tmp_path))
    with pytest.raises(ConfigError, match=r"optimizer\.weight_decay"):
        anew(run, f"optimizer.weight_decay={after}", "resume.allow_changes=true")


def test_a_checkpoint_of_a_later_format_is_not_taken_for_damaged(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    manifest = run.checkpoints / "step-000000012" / MANIFEST
    manifest.write_text(json.dumps({"format_version": 3, "step": 12, "parts": {}}))

    with pytest.raises(DataError, match="is of format 3; this effnet knows up to 2"):
        train(run, attempt=1)
    assert manifest.exists()
    assert not (run.checkpoints / QUARANTINE).exists()


def test_the_latest_is_the_one_gone_on_from(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)  # LATEST says 17
    assert choose(run, run.load_config()).step == 12
    assert run.latest_checkpoint() == "step-000000012"
