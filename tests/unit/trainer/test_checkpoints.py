import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.load import load_config
from configs.problems import DataError
from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, changed, new_run, train, weights
from trainer.checkpoint_files import CHECKPOINT, MANIFEST, CheckpointFile, load_weights, read_manifest, verify
from trainer.checkpoints import LATEST, CheckpointDirectory
from trainer.resuming import find_checkpoint
from trainer.retention import Retention
from trainer.rollback import Rollbacks


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


def save(directory: CheckpointDirectory, step: int) -> Path:
    temporary = directory.begin(step)
    CheckpointFile().save_checkpoint({"global_step": step, "state_dict": {}}, temporary / CHECKPOINT)
    return directory.commit(step, manifest={"world_size": 1})


def flip(file: Path, bit: int) -> None:
    content = bytearray(file.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    file.write_bytes(content)


def names(directory: CheckpointDirectory) -> list[str]:
    return sorted(path.name for path in directory.path.iterdir())


def test_a_save_has_its_name_only_when_it_is_whole(directory: CheckpointDirectory) -> None:
    temporary = directory.begin(120)
    assert temporary.name == "step-000000120.tmp"
    assert directory.newest() is None
    torch.save({}, temporary / CHECKPOINT)
    assert directory.newest() is None

    path = directory.commit(120, manifest={"world_size": 2})
    assert names(directory) == [LATEST, "step-000000120"]
    assert directory.newest() == path
    assert (directory.path / LATEST).read_text() == "step-000000120\n"
    manifest = read_manifest(path)
    assert (manifest["step"], manifest["world_size"]) == (120, 2)
    assert manifest["files"][CHECKPOINT]["bytes"] == (path / CHECKPOINT).stat().st_size


def test_a_save_in_several_files_and_folders_is_verified_as_a_whole(directory: CheckpointDirectory) -> None:
    temporary = directory.begin(1)
    for name in ("checkpoint.ckpt/rank_0/part.pt", "checkpoint.ckpt/rank_1/part.pt", "weights.safetensors"):
        (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        (temporary / name).write_bytes(name.encode())
    path = directory.commit(1, manifest={})

    assert verify(path) is None
    (path / "checkpoint.ckpt/rank_1/part.pt").unlink()
    assert verify(path) == "checkpoint.ckpt/rank_1/part.pt is missing"


def test_the_newest_is_the_one_of_the_highest_step(directory: CheckpointDirectory) -> None:
    for step in (9, 1000, 99):
        save(directory, step)

    newest = directory.newest()
    assert newest is not None
    assert newest.name == "step-000001000"


# What can happen to a checkpoint, and the reason that is given.
def _flip_content(path: Path) -> None:
    flip(path / CHECKPOINT, bit=4321)


def _truncate(path: Path) -> None:
    content = (path / CHECKPOINT).read_bytes()
    (path / CHECKPOINT).write_bytes(content[: len(content) // 2])


def _append(path: Path) -> None:
    with (path / CHECKPOINT).open("ab") as file:
        file.write(b"x")


def _remove_content(path: Path) -> None:
    (path / CHECKPOINT).unlink()


def _remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def _truncate_manifest(path: Path) -> None:
    (path / MANIFEST).write_text((path / MANIFEST).read_text()[:60])


def _empty_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("")


def _zeros_in_manifest(path: Path) -> None:
    (path / MANIFEST).write_bytes(bytes(200))  # what some file systems leave after a power cut


def _other_manifest(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {"checkpoint.ckpt": {"size": 3}}, "step": 3}')


def _manifest_of_nothing(path: Path) -> None:
    (path / MANIFEST).write_text('{"files": {}, "step": 3}')


def _manifest_of_another_step(path: Path) -> None:
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_text(json.dumps({**manifest, "step": 21}))


DAMAGE = [
    (_flip_content, "checkpoint.ckpt has another checksum than its manifest"),
    (_truncate, "bytes instead of"),
    (_append, "bytes instead of"),
    (_remove_content, "checkpoint.ckpt is missing"),
    (_remove_manifest, "no readable manifest"),
    (_truncate_manifest, "no readable manifest"),
    (_empty_manifest, "no readable manifest"),
    (_zeros_in_manifest, "no readable manifest"),
    (_other_manifest, "no readable manifest"),
    (_manifest_of_nothing, "names no files"),
    (_manifest_of_another_step, "its manifest is of step 21"),
]


@pytest.mark.parametrize(("damage", "reason"), DAMAGE, ids=[damage.__name__.strip("_") for damage, _ in DAMAGE])
def test_a_damaged_checkpoint_is_passed_over_for_an_earlier_one_and_the_reason_logged(
    damage: Any, reason: str, directory: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = save(directory, 10), save(directory, 20)
    damage(bad)

    with caplog.at_level(logging.WARNING, logger="effnet"):
        assert directory.newest() == good
    assert reason in str(verify(bad))
    assert len(caplog.records) == 1
    message = caplog.records[0].getMessage()
    assert str(bad) in message
    assert "passed over" in message
    assert reason in message
    with pytest.raises(DataError, match=reason):
        read_manifest(bad)
    with pytest.raises(DataError, match=reason):
        load_weights(bad)


def test_no_flipped_bit_of_the_content_goes_unnoticed(directory: CheckpointDirectory) -> None:
    path = save(directory, 1)
    size = (path / CHECKPOINT).stat().st_size
    for bit in range(0, 8 * size, 997):
        flip(path / CHECKPOINT, bit)
        assert verify(path) is not None, bit
        flip(path / CHECKPOINT, bit)
    assert verify(path) is None


def test_no_flipped_bit_of_the_manifest_raises_or_changes_what_is_verified(directory: CheckpointDirectory) -> None:
    path = save(directory, 1)
    original = read_manifest(path)
    for bit in range(8 * (path / MANIFEST).stat().st_size):
        flip(path / MANIFEST, bit)
        if verify(path) is None:
            found = read_manifest(path)
            assert (found["step"], found["files"]) == (original["step"], original["files"]), bit
        flip(path / MANIFEST, bit)


def test_without_one_that_verifies_there_is_none(directory: CheckpointDirectory) -> None:
    assert directory.newest() is None
    for step in (1, 2):
        _truncate(save(directory, step))

    assert directory.newest() is None
    with pytest.raises(DataError, match="no checkpoint that verifies"):
        directory.chosen(None)


def test_what_a_save_leaves_that_was_killed_is_never_chosen(directory: CheckpointDirectory) -> None:
    good = save(directory, 10)
    directory.begin(20)  # before the content
    torch.save({}, directory.begin(30) / CHECKPOINT)  # before the manifest
    whole = save(directory, 40)
    whole.rename(whole.with_name(f"{whole.name}.tmp"))  # before the rename

    assert directory.newest() == good


def test_a_save_that_was_killed_after_the_rename_counts(directory: CheckpointDirectory) -> None:
    save(directory, 10)
    latest = (directory.path / LATEST).read_text()
    new = save(directory, 20)
    (directory.path / LATEST).write_text(latest)

    assert directory.newest() == new


@pytest.mark.parametrize("content", [None, "", "step-000000099\n", "../elsewhere\n"])
def test_a_wrong_or_missing_latest_misleads_nobody(content: str | None, directory: CheckpointDirectory) -> None:
    path = save(directory, 10)
    (directory.path / LATEST).unlink()
    if content is not None:
        (directory.path / LATEST).write_text(content)

    assert directory.newest() == path
    assert directory.chosen(None) == path


def test_folders_of_other_names_are_no_checkpoints(directory: CheckpointDirectory) -> None:
    path = save(directory, 10)
    for name in ("step-best", "step-000000010.copy", "last"):
        shutil.copytree(path, directory.path / name)

    assert directory.newest() == path
    directory.prune(Retention(last=1))
    assert names(directory) == sorted([LATEST, path.name, "step-best", "step-000000010.copy", "last"])


def test_a_step_that_is_saved_again_replaces_what_did_not_verify(directory: CheckpointDirectory) -> None:
    _truncate(save(directory, 10))
    (directory.path / "step-000000010.replaced.tmp").mkdir()
    (directory.path / "step-000000010.replaced.tmp" / "rest").touch()

    path = save(directory, 10)
    assert verify(path) is None
    assert names(directory) == [LATEST, path.name]


# Pruning


def test_the_newest_few_are_kept(directory: CheckpointDirectory) -> None:
    for step in range(1, 6):
        save(directory, step)
    directory.prune(Retention(last=2))

    assert names(directory) == [LATEST, "step-000000004", "step-000000005"]
    directory.prune(Retention(last=2))
    assert names(directory) == [LATEST, "step-000000004", "step-000000005"]


def test_the_last_good_checkpoint_is_never_removed(directory: CheckpointDirectory) -> None:
    good = save(directory, 1)
    for step in range(2, 6):
        _flip_content(save(directory, step))
    directory.prune(Retention(last=1))

    assert directory.newest() == good


def test_damaged_ones_of_later_steps_do_not_push_out_what_is_saved_after_a_resume(
    directory: CheckpointDirectory,
) -> None:
    save(directory, 100)
    for step in (200, 300):
        _truncate(save(directory, step))
    assert directory.newest() == directory.path / "step-000000100"

    for step in (110, 120, 130):  # the run went on from 100
        saved = save(directory, step)
        directory.prune(Retention(last=2))
        assert directory.newest() == saved
    assert {"step-000000120", "step-000000130"} <= set(names(directory))
    assert not {"step-000000100", "step-000000110"} & set(names(directory))


def test_nothing_is_removed_where_nothing_verifies(directory: CheckpointDirectory) -> None:
    for step in (1, 2, 3):
        _truncate(save(directory, step))
    directory.prune(Retention(last=1))

    assert len(list(directory.path.glob("step-*"))) == 3


def test_what_killed_saves_left_is_removed(directory: CheckpointDirectory) -> None:
    torch.save({}, directory.begin(5) / CHECKPOINT)
    directory.begin(6)
    path = save(directory, 7)
    directory.prune(Retention(last=3))

    assert names(directory) == [LATEST, path.name]


# Content


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def test_a_checkpoint_with_code_is_refused_though_it_verifies(directory: CheckpointDirectory, tmp_path: Path) -> None:
    target = tmp_path / "was-run"
    torch.save({"state_dict": {}, "callbacks": {}, "x": Payload(target)}, directory.begin(1) / CHECKPOINT)
    path = directory.commit(1, manifest={})

    assert verify(path) is None
    with pytest.raises(DataError, match="code in it is not run"):
        CheckpointFile().load_checkpoint(path / CHECKPOINT)
    with pytest.raises(DataError, match="code in it is not run"):
        CheckpointFile().load_checkpoint(path / CHECKPOINT, weights_only=False)  # whatever Lightning asks for
    with pytest.raises(DataError, match="code in it is not run"):
        load_weights(path)
    assert not target.exists()


def test_a_run_does_not_go_on_from_a_checkpoint_with_code(trained: RunDirectory, tmp_path: Path) -> None:
    run, target = as_killed_after(trained, tmp_path, step=3), tmp_path / "was-run"
    directory = CheckpointDirectory(run.checkpoints)
    content = torch.load(run.checkpoints / "step-000000003" / CHECKPOINT, weights_only=True)
    torch.save({**content, "extra": Payload(target)}, directory.begin(4) / CHECKPOINT)
    directory.commit(4, manifest={"world_size": 1})

    with pytest.raises(DataError, match="code in it is not run"):
        train(run, attempt=1)
    assert not target.exists()


def test_the_weights_of_a_checkpoint_are_the_networks(trained: RunDirectory) -> None:
    path = trained.checkpoints / "step-000000017"

    loaded = load_weights(path)
    assert loaded.keys() == {"raw", "ema"}
    assert loaded["raw"].keys() == loaded["ema"].keys()
    assert not changed(loaded["raw"], weights(trained, 17))


# Which checkpoint a run goes on from


def test_a_run_goes_on_from_the_last_good_checkpoint_and_ends_the_same(
    trained: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    _flip_content(run.checkpoints / "step-000000012")
    _remove_manifest(run.checkpoints / "step-000000011")

    with caplog.at_level(logging.INFO, logger="effnet"):
        train(run, attempt=1)
    assert "step-000000012 is passed over: checkpoint.ckpt has another checksum" in caplog.text
    assert "step-000000011 is passed over: no readable manifest" in caplog.text
    assert "resumed at step 10" in caplog.text
    assert verify(run.checkpoints / "step-000000012") is None
    assert not changed(weights(trained, 17), weights(run, 17))


def test_resume_takes_the_path_of_a_checkpoint_that_verifies(directory: CheckpointDirectory) -> None:
    path, _ = save(directory, 3), save(directory, 4)
    config = load_config([], ["data.train_shards=x", "data.val_shards=x", f"resume={path}"]).config

    assert find_checkpoint(config, directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) == path
    _truncate(path)
    with pytest.raises(DataError, match="bytes instead of"):
        find_checkpoint(config, directory, Rollbacks.read(directory.path.parent / "rollbacks.json"))


def test_a_resumed_run_does_not_need_the_weights_it_started_from(
    toy_overrides: Any, trained: RunDirectory, tmp_path: Path
) -> None:
    torch.save(weights(trained, 17), tmp_path / "start.pth")
    overrides = toy_overrides(model__checkpoint_path=tmp_path / "start.pth", trainer__max_epochs=2)
    run = train(new_run([*overrides, "checkpoint.every_n_steps=1", "checkpoint.keep_last=100"], tmp_path / "first"))
    resumed = as_killed_after(run, tmp_path / "second", step=16)
    (tmp_path / "start.pth").unlink()

    train(resumed, attempt=1)
    assert not changed(weights(run, 17), weights(resumed, 17))


def test_the_manifest_says_what_the_checkpoint_is_of(trained: RunDirectory) -> None:
    manifest = json.loads((trained.checkpoints / "step-000000009" / MANIFEST).read_text())

    assert manifest["step"] == 9
    assert manifest["epoch"] == 1
    assert manifest["world_size"] == 1
    assert len(manifest["config_hash"]) == 64
    assert manifest["files"].keys() == {CHECKPOINT}


def test_what_was_just_saved_is_never_pruned(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    for step in (30, 20, 10):
        (directory.begin(step) / CHECKPOINT).write_bytes(b"weights")
        saved = directory.commit(step, manifest={})
        directory.prune(Retention(last=2), saved=saved)

    assert sorted(path.name for path in tmp_path.glob("step-*")) == [f"step-{step:09d}" for step in (10, 20, 30)]
