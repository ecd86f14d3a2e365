from pathlib import Path
from typing import Any

import pytest

from trainer.checkpoint_files import CHECKPOINT, CheckpointFile
from trainer.checkpoints import LATEST, CheckpointDirectory
from trainer.rollback import Rollbacks


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


def save(checkpoints: CheckpointDirectory, step: int, **manifest: Any) -> Path:
    CheckpointFile().save_checkpoint({}, checkpoints.begin(step) / CHECKPOINT)
    return checkpoints.commit(step, manifest=manifest)


def rolled_back(tmp_path: Path, *places: tuple[int, int]) -> Rollbacks:
    """Rollbacks before a step, to a next batch, written one after the other."""
    file = tmp_path / "rollbacks.json"
    for before_step, next_batch in places:
        Rollbacks.read(file).add(before_step=before_step, next_batch=next_batch, reason="test")
    return Rollbacks.read(file)


def test_without_rollbacks_every_checkpoint_is_admitted(checkpoints: CheckpointDirectory, tmp_path: Path) -> None:
    rollbacks, path = Rollbacks.read(tmp_path / "none.json"), save(checkpoints, 9)

    assert rollbacks.admit(path, checkpoints)
    assert rollbacks.next_batch(path, checkpoints) is None
    assert rollbacks.next_batch(None, checkpoints) is None


def test_checkpoints_from_the_first_bad_step_on_are_not_admitted(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    paths = [save(checkpoints, step, rollbacks=0) for step in (4, 5, 6, 7)]
    rollbacks = rolled_back(tmp_path, (6, 8))

    assert [rollbacks.admit(path, checkpoints) for path in paths] == [True, True, False, False]
    assert [rollbacks.next_batch(path, checkpoints) for path in paths[:2]] == [8, 8]
    assert rollbacks.next_batch(None, checkpoints) == 8


def test_a_checkpoint_from_before_rollbacks_were_counted_knows_of_none(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    old, rollbacks = save(checkpoints, 3), rolled_back(tmp_path, (6, 8))

    assert rollbacks.admit(old, checkpoints)
    assert rollbacks.next_batch(old, checkpoints) == 8


def test_a_checkpoint_written_after_a_rollback_says_itself_where_its_data_stands(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    new, old = save(checkpoints, 9, rollbacks=1), save(checkpoints, 5, rollbacks=0)
    rollbacks = rolled_back(tmp_path, (6, 8))
    assert rollbacks.admit(new, checkpoints)
    assert rollbacks.next_batch(new, checkpoints) is None

    # A second rollback, to before the first: whatever a checkpoint does not know of counts.
    rollbacks = rolled_back(tmp_path, (9, 14))
    assert not rollbacks.admit(new, checkpoints)
    assert rollbacks.admit(old, checkpoints)
    assert rollbacks.next_batch(old, checkpoints) == 14


def test_a_checkpoint_of_another_run_knows_nothing_of_this_ones(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    other = save(CheckpointDirectory(tmp_path / "other"), 100, rollbacks=7)
    rollbacks = rolled_back(tmp_path, (106, 108))

    assert rollbacks.admit(other, checkpoints)
    assert rollbacks.next_batch(other, checkpoints) == 108


def test_what_is_not_admitted_is_removed_and_the_latest_is_the_chosen_one(
    checkpoints: CheckpointDirectory, tmp_path: Path
) -> None:
    good, *_ = [save(checkpoints, step, rollbacks=0) for step in (5, 6, 7)]
    rollbacks = rolled_back(tmp_path, (6, 8))
    rollbacks.discard(checkpoints, chosen=good)

    assert sorted(path.name for path in checkpoints.path.iterdir()) == [LATEST, "step-000000005"]
    assert (checkpoints.path / LATEST).read_text() == "step-000000005\n"
    assert checkpoints.newest() == good

    save(checkpoints, 6, rollbacks=1)
    rollbacks.discard(checkpoints, chosen=checkpoints.newest())
    assert checkpoints.newest() == checkpoints.path / "step-000000006"


def test_with_nothing_to_go_back_to_no_checkpoint_is_left(checkpoints: CheckpointDirectory, tmp_path: Path) -> None:
    save(checkpoints, 6, rollbacks=0)
    rolled_back(tmp_path, (6, 8)).discard(checkpoints, chosen=None)

    assert list(checkpoints.path.iterdir()) == []
