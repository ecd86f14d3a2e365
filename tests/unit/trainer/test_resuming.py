"""Which checkpoint a run goes on from, what is done with bad ones, and that everything goes on without a jump."""

import io
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.load import load_config
from configs.problems import ConfigError, DataError
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.making.shards import Image, write_split
from tests.conftest import picture
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, checkpoint, new_run, rows, train, weights
from trainer.checkpoint_files import CHECKPOINT, MANIFEST, CheckpointFile, load_weights, read_manifest, verify
from trainer.checkpoints import QUARANTINE, REASON, SUPERSEDED, CheckpointDirectory
from trainer.resuming import START_ANEW, Start, find_checkpoint, go_back
from trainer.resuming import choose as choose_on_rank_0
from trainer.retention import Retention
from trainer.rollback import Rollbacks

Overrides = Callable[..., list[str]]
STEP = 20


@pytest.fixture
def directory(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "checkpoints")


def save(directory: CheckpointDirectory, step: int, *, attempt: int = 0, **manifest: object) -> Path:
    temporary = directory.begin(step)
    CheckpointFile().save_checkpoint({"global_step": step, "state_dict": {}}, temporary / CHECKPOINT)
    return directory.commit(step, manifest={"world_size": 1, "attempt": attempt, **manifest})


def resuming(checkpoint: object = "auto") -> Config:
    return load_config([], ["data.train_shards=x", "data.val_shards=x", f"resume={checkpoint}"]).config


def choose(run: RunDirectory, config: Config) -> Start:
    console = Console(file=io.StringIO())
    return choose_on_rank_0(config, run, ALONE, attempt=1, console=console)


@pytest.mark.parametrize(("saved", "warned"), [(2, 1), (1, 0)])
def test_another_number_of_processes_is_told_of_where_batchnorm_sees_all_of_them(
    saved: int, warned: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config([], ["data.train_shards=x", "data.val_shards=x", "trainer.sync_batchnorm=true"]).config
    run = RunDirectory(tmp_path)
    save(CheckpointDirectory(run.checkpoints), STEP, world_size=saved, config=config.model_dump(mode="json"))

    assert choose(run, config).step == STEP
    assert caplog.text.count(f"saw the micro-batches of {saved} processes together and now sees those of 1") == warned


def anew(run: RunDirectory, *overrides: str) -> RunDirectory:
    """The next attempt's configuration, checked and frozen as the launcher does."""
    place = [f"runs_dir={run.path.parent}", f"run_id={run.run_id}"]
    run.freeze(load_config([str(run.config_file)], [*overrides, *place]).config)
    return run


# Bad checkpoints


def _flip_a_bit(path: Path) -> None:
    content = bytearray((path / CHECKPOINT).read_bytes())
    content[700] ^= 4
    (path / CHECKPOINT).write_bytes(content)


def _truncate(path: Path) -> None:
    os.truncate(path / CHECKPOINT, 100)


def _remove_content(path: Path) -> None:
    (path / CHECKPOINT).unlink()


def _remove_manifest(path: Path) -> None:
    (path / MANIFEST).unlink()


def _empty_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("")


def _other_manifest(path: Path) -> None:
    (path / MANIFEST).write_text("[1, 2]")


LASTING = [
    (_flip_a_bit, "checkpoint.ckpt has another checksum than its manifest"),
    (_truncate, "checkpoint.ckpt has 100 bytes instead of"),
    (_remove_content, "checkpoint.ckpt is missing"),
    (_remove_manifest, "no readable manifest"),
    (_empty_manifest, "no readable manifest"),
    (_other_manifest, "no readable manifest"),
]


@pytest.mark.parametrize(("damage", "reason"), LASTING, ids=[damage.__name__.strip("_") for damage, _ in LASTING])
def test_a_bad_checkpoint_is_moved_aside_with_the_reason(
    damage: Any, reason: str, directory: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad = save(directory, 10), save(directory, STEP)
    damage(bad)

    assert find_checkpoint(resuming(), directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) == good
    assert not bad.exists()
    moved = directory.path / QUARANTINE / bad.name
    assert reason in (moved / REASON).read_text()
    (message,) = [r.getMessage() for r in caplog.records if "is passed over" in r.getMessage()]
    assert str(bad) in message
    assert reason in message
    assert str(moved) in message
    caplog.clear()
    assert find_checkpoint(resuming(), directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) == good
    assert not [r for r in caplog.records if "is passed over" in r.getMessage()]


def test_a_step_may_go_bad_again_and_again(directory: CheckpointDirectory) -> None:
    good = save(directory, 10)
    for _ in range(3):
        _truncate(save(directory, STEP))
        assert find_checkpoint(resuming(), directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) == good

    found = sorted(path.name for path in (directory.path / QUARANTINE).iterdir())
    assert found == ["step-000000020", "step-000000020-1", "step-000000020-2"]
    directory.prune(Retention(last=1))
    assert len(list((directory.path / QUARANTINE).iterdir())) == 3


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="the file whose reading fails is Linux's")
def test_a_checkpoint_that_cannot_be_read_stays_where_it_is(
    directory: CheckpointDirectory, caplog: pytest.LogCaptureFixture
) -> None:
    good, unreadable = save(directory, 10), save(directory, STEP)
    (unreadable / CHECKPOINT).unlink()
    (unreadable / CHECKPOINT).symlink_to("/proc/self/mem")  # reading at 0 is an input/output error
    manifest = json.loads((unreadable / MANIFEST).read_text())
    manifest["files"][CHECKPOINT]["bytes"] = 0
    (unreadable / MANIFEST).write_text(json.dumps(manifest))

    assert find_checkpoint(resuming(), directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) == good
    assert unreadable.exists()
    assert "is passed over: it cannot be read ([Errno 5]" in caplog.text


def test_only_fit_moves_checkpoints_and_puts_aside_those_later_than_a_named_one(directory: CheckpointDirectory) -> None:
    good, bad = save(directory, 10), save(directory, STEP)
    _truncate(bad)

    assert directory.chosen(None) == good  # as validate and export do
    assert bad.exists()
    rollbacks = Rollbacks.read(directory.path.parent / "rollbacks.json")
    assert find_checkpoint(resuming(good), directory, rollbacks) == good
    assert bad.exists()  # until it is known that the run may go on from there
    go_back(good, read_manifest(good), directory, rollbacks)
    assert (directory.path / SUPERSEDED / bad.name).exists()


def test_where_none_is_good_a_run_begins_anew(directory: CheckpointDirectory) -> None:
    for step in (1, 2):
        _truncate(save(directory, step))

    assert find_checkpoint(resuming(), directory, Rollbacks.read(directory.path.parent / "rollbacks.json")) is None
    assert len(list((directory.path / QUARANTINE).iterdir())) == 2


# Going back


def test_a_run_told_where_to_begin_begins_there_once(trained: RunDirectory, tmp_path: Path) -> None:
    """Then it goes on from what it has saved since, with the same command or without it."""
    run = as_killed_after(trained, tmp_path, step=17)
    anew(run, f"resume={run.checkpoints / 'step-000000005'}", "trainer.max_steps=8")
    train(run, attempt=1)
    assert choose(run, run.load_config()).step == 8
    aside = sorted(path.name for path in (run.checkpoints / SUPERSEDED).iterdir())
    assert aside == [f"step-{step:09d}" for step in range(6, 18)]
    assert "went back to step 5" in (run.checkpoints / SUPERSEDED / aside[0] / REASON).read_text()

    train(anew(run, "trainer.max_steps=10"), attempt=2)
    train(anew(run, "resume=auto", "trainer.max_steps=null"), attempt=3)
    assert [row["attempt"] for row in rows(run) if row["train/loss"]] == ["0"] * 5 + ["1"] * 3 + ["2"] * 2 + ["3"] * 7
    assert not changed(weights(trained, 17), weights(run, 17))


def test_a_run_that_was_started_with_never_goes_on_by_itself(trained: RunDirectory, tmp_path: Path) -> None:
    """The launcher refuses it where there is a checkpoint; those that are there when a rank looks are its own."""
    run = as_killed_after(trained, tmp_path, step=12)
    config = load_config([str(run.config_file)], ["resume=never"]).config
    with pytest.raises(ConfigError, match="step-000000012 exists") as caught:
        run.check(config)
    assert caught.value.problems[0].key == "resume.checkpoint"
    assert choose(run, config).step == 12


# Going on without a jump or a repeat


@pytest.fixture(scope="module")
def sparse(toy_overrides: Overrides, tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """A finished run with a row of metrics every five steps and a checkpoint of every one."""
    settings = {"trainer__max_epochs": 2, "trainer__log_every_n_steps": 5}
    overrides = toy_overrides(**settings, checkpoint__every_n_steps=1, checkpoint__keep_last=100)
    return train(new_run(overrides, tmp_path_factory.mktemp("sparse")))


@pytest.mark.parametrize("step", [3, 5, 7, 9, 16])
def test_rows_of_several_steps_are_the_same_over_a_resume_within_them(
    step: int, sparse: RunDirectory, tmp_path: Path
) -> None:
    resumed = train(as_killed_after(sparse, tmp_path, step=step), attempt=1)

    names = set(rows(sparse)[0]) - {"attempt", "throughput/images_per_second", "throughput/data_wait_share"}
    names -= {"throughput/images_per_second_per_device", "throughput/step_time_p50_ms", "throughput/step_time_p95_ms"}
    names -= {"checkpoint/stall_s", "data/disk_mb_per_second"}
    names = {name for name in names if not name.startswith("system/")}
    assert {"step", "samples_seen", "train/loss", "train/grad_norm", "lr", "val/top1"} <= names
    assert [{name: row[name] for name in names} for row in rows(resumed)] == [
        {name: row[name] for name in names} for row in rows(sparse)
    ]


@pytest.mark.parametrize("step", [8, 9, 10])
def test_an_epochs_validation_comes_once_wherever_a_run_was_killed(
    step: int, trained: RunDirectory, tmp_path: Path
) -> None:
    resumed = train(as_killed_after(trained, tmp_path, step=step), attempt=1)

    def validations(run: RunDirectory) -> list[tuple[str, str]]:
        return [(row["step"], row["val/loss"]) for row in rows(run) if row["val/loss"]]

    assert validations(resumed) == validations(trained)
    assert not changed(average(trained, 17), average(resumed, 17))


def test_bad_samples_are_counted_over_all_attempts(toy_overrides: Overrides, shards: Path, tmp_path: Path) -> None:
    def image(number: int) -> bytes:
        return b"no image" if number in (3, 70) else picture(number)

    images = [Image(f"img_{i:05d}", "png", i % 4, partial(image, i)) for i in range(129)]
    write_split(images, tmp_path / "bad", name="toy", split="train", num_shards=5, seed=1)
    overrides = toy_overrides(
        data__train_shards=f"{tmp_path}/bad/toy-train-*.tar",
        data__max_bad_fraction=0.1,
        trainer__max_epochs=2,
        checkpoint__every_n_steps=1,
        checkpoint__keep_last=100,
    )
    whole = train(new_run(overrides, tmp_path / "whole"))
    counts = [row["data/bad_samples"] for row in rows(whole) if row["train/loss"]]
    assert (counts[8], counts[16]) == ("2.0", "4.0")

    resumed = train(as_killed_after(whole, tmp_path / "resumed", step=11), attempt=1)
    assert [row["data/bad_samples"] for row in rows(resumed) if row["train/loss"]] == counts

    strict = as_killed_after(whole, tmp_path / "strict", step=11)
    with pytest.raises(DataError, match="3 images could not be read"):  # 2 of them in the first attempt
        train(anew(strict, "data.max_bad_fraction=0.0155"), attempt=1)


def inspect(directory: Path) -> list[dict[str, Any]]:
    """What W&B's own tool reads of an offline run, a record a line."""
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent))
    assert wandb is not None
    command = [wandb, "leet", "inspect", "--json", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_wandb_gets_every_step_once_over_two_attempts(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it for good
    run = new_run(toy_overrides(trainer__max_epochs=1, tracking__mode="offline", trainer__max_steps=4), tmp_path)
    train(run, attempt=0)
    train(anew(run, "trainer.max_steps=null"), attempt=1)

    parts = sorted(run.wandb_dir.glob("offline-run-*"))
    records = [record for part in parts for record in inspect(part)]
    assert {record["run"]["run_id"] for record in records if record["type"] == "run"} == {run.wandb_id()}
    items = [record["history"]["item"] for record in records if record["type"] == "history"]
    steps = [(item["trainer/global_step"], item["attempt"]) for item in items if "train/loss" in item]
    assert steps == [(step, 0 if step <= 4 else 1) for step in range(1, 10)]
    assert [item["samples_seen"] for item in items if "train/loss" in item] == [16 * step for step in range(1, 10)]


# Changes


def test_what_has_changed_is_shown_in_terminal_and_log_and_recorded(
    trained: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = as_killed_after(trained, tmp_path, step=15)
    anew(run, "data.num_workers=1", "trainer.log_every_n_steps=2")
    output = io.StringIO()
    with caplog.at_level(logging.DEBUG, logger="effnet"):
        train(run, attempt=1, console=Console(file=output, width=120))

    text = output.getvalue()
    assert "changed since step-000000015" in text
    assert "allow_changes" not in caplog.text
    for key, old, new in (("data.num_workers", "0", "1"), ("trainer.log_every_n_steps", "1", "2")):
        (line,) = [line for line in text.splitlines() if key in line]
        assert line.split() == [key, old, new]
        assert f"{key} was {old}, is {new}" in caplog.text
    entry = json.loads(run.environment_file.read_text())[-1]
    assert entry["resumed_from"] == str(run.checkpoints / "step-000000015")
    newest = json.loads((run.checkpoints / "step-000000017" / MANIFEST).read_text())
    assert newest["config"]["data"]["num_workers"] == 1
    assert not changed(weights(trained, 17), weights(run, 17))


OTHER = ("data.global_batch_size=32", "optimizer.lr=0.001", "ema.decay=0.5")


def test_changes_that_break_exactness_are_refused_all_at_once(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    config = load_config([str(run.config_file)], OTHER).config

    for check in (lambda: run.check(config), lambda: choose(run, config)):
        with pytest.raises(ConfigError) as caught:
            check()
        assert [problem.key for problem in caught.value.problems] == [key.partition("=")[0] for key in OTHER]
        assert all("resume.allow_changes=true" in problem.accepted for problem in caught.value.problems)


def test_changes_that_are_allowed_take_effect_from_the_checkpoint_on(
    trained: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = as_killed_after(trained, tmp_path, step=13)  # 208 samples: 79 of the second epoch
    anew(run, *OTHER, "resume.allow_changes=true")
    with caplog.at_level(logging.INFO, logger="effnet"):
        train(run, attempt=1)

    assert "global_batch_size was 16, is 32" in caplog.text
    assert "resumed at step 13, epoch 1" in caplog.text
    found = [row for row in rows(run) if row["train/loss"]]
    # Steps keep their numbers. 258 samples in batches of 32: those after the 6th, of which the 7th begins 16 earlier.
    assert [row["step"] for row in found] == [str(step) for step in range(1, 17)]
    assert [row["samples_seen"] for row in found[13:]] == ["240", "272", "304"]
    # The new peak and the place in the new schedule, not what is in the states of both.
    fresh = train(new_run([*overrides_of(run), "resume=auto"], tmp_path / "fresh"))
    assert [row["lr"] for row in found[13:]] == [row["lr"] for row in rows(fresh) if row["train/loss"]][6:9]
    groups = checkpoint(run, 16)["optimizer_states"][0]["param_groups"]
    assert {group["initial_lr"] for group in groups} == {0.001}
    assert checkpoint(run, 16)["effnet"]["position"]["samples_consumed"] == 288


def overrides_of(run: RunDirectory) -> list[str]:
    """A run's settings as a file of their own."""
    tree = json.loads(run.load_config().model_dump_json(exclude={"run_id", "runs_dir", "resume"}))

    def walk(value: Any, prefix: str) -> list[str]:
        if isinstance(value, dict) and value:
            return [item for key, inner in value.items() for item in walk(inner, f"{prefix}.{key}" if prefix else key)]
        return [f"{prefix}={json.dumps(value)}"]

    return walk(tree, "")


def test_moved_shards_are_the_same_data_and_others_are_not(trained: RunDirectory, shards: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(shards, moved)
    place = [
        f"data.{split}_shards={moved}/toy-{name}-*.tar" for split, name in (("train", "train"), ("val", "validation"))
    ]
    run = as_killed_after(trained, tmp_path, step=15)
    train(anew(run, *place), attempt=1)
    assert not changed(weights(trained, 17), weights(run, 17))

    (moved / "toy-train-00004.tar").unlink()
    other = as_killed_after(trained, tmp_path / "other", step=15)
    with pytest.raises(DataError, match=r"index_hash was .*resume\.allow_changes=true"):
        train(anew(other, *place), attempt=1)
    train(anew(other, *place, "resume.allow_changes=true"), attempt=2)
    assert checkpoint(other, 17)["effnet"]["position"]["epoch"] == 2  # two epochs of 103 samples


def test_another_network_is_refused_whatever_is_allowed(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    with pytest.raises(ConfigError, match="compound_phi"):
        anew(run, "model.compound_phi=-11", "resume.allow_changes=true")


# Warm start


@pytest.mark.parametrize("given", ["run", "checkpoint"])
def test_another_runs_weights_alone_begin_a_run(
    given: str, trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    path = trained.path if given == "run" else trained.checkpoints / "step-000000017"
    overrides = [*toy_overrides(trainer__max_steps=2, optimizer__lr=1e-9, scheduler__warmup_epochs=0), f"resume={path}"]
    if given == "checkpoint":  # whose own run a `resume` of it would go on with
        overrides[-1] = f"model.checkpoint_path={path}"
    run = train(new_run(overrides, tmp_path))

    assert [row["step"] for row in rows(run) if row["train/loss"]] == ["1", "2"]
    for name, tensor in average(trained, 17).items():
        if name.endswith("weight"):
            assert tensor.allclose(weights(run, 2)[name], atol=1e-6), name

    shutil.rmtree(run.checkpoints / "step-000000002")
    assert choose(run, run.load_config()) == START_ANEW


def test_a_run_started_warm_goes_on_from_its_own_checkpoints(
    trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = [*toy_overrides(trainer__max_steps=5), f"resume={trained.path}"]
    whole = train(new_run([*overrides, "checkpoint.every_n_steps=1", "checkpoint.keep_last=100"], tmp_path / "whole"))
    resumed = train(as_killed_after(whole, tmp_path / "resumed", step=3), attempt=1)

    assert not changed(weights(whole, 5), weights(resumed, 5))


def test_a_warm_start_leaves_another_classifier_at_its_initial_values(
    trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = [*toy_overrides(trainer__max_steps=1, data__num_classes=7), f"resume={trained.path}"]
    run = train(new_run(overrides, tmp_path))

    assert "has another classifier: it is left at its initial values" in caplog.text
    assert weights(run, 1)["classifier.weight"].shape[0] == 7


def test_a_folder_without_a_checkpoint_begins_no_run(toy_overrides: Overrides, tmp_path: Path) -> None:
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    (tmp_path / "empty" / "config.yaml").touch()
    run = new_run([*toy_overrides(), f"resume={tmp_path / 'empty'}"], tmp_path)

    with pytest.raises(DataError, match="no checkpoint that verifies"):
        train(run)


# Formats

FIRST = Path(__file__).parents[2] / "fixtures" / "checkpoint-format-1"


def of_format_1(tmp_path: Path) -> RunDirectory:
    shutil.copytree(FIRST, tmp_path, dirs_exist_ok=True)
    run = RunDirectory(tmp_path / "run")
    splits = (("train", "train"), ("val", "validation"))
    places = [f"data.{key}_shards={tmp_path}/shards/tiny-{name}-*.tar" for key, name in splits]
    return anew(run, *places, f"runs_dir={tmp_path}", "run_id=run")


def test_a_checkpoint_of_format_1_resumes_to_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = of_format_1(tmp_path)
    assert json.loads((run.checkpoints / "step-000000003" / MANIFEST).read_text())["format_version"] == 1
    assert verify(run.checkpoints / "step-000000003") is None
    with caplog.at_level(logging.INFO, logger="effnet"):
        train(run, attempt=1)

    assert "resumed at step 3, epoch 0" in caplog.text
    found = rows(run)
    assert [row["step"] for row in found] == ["2", "4", "4", "6", "8", "8"]
    assert [row["attempt"] for row in found] == ["0", "1", "1", "1", "1", "1"]
    last = checkpoint(run, 8)
    assert last["effnet"]["format_version"] == 2
    assert last["effnet"]["position"]["samples_consumed"] == 64
    assert load_weights(run.checkpoints / "step-000000008").keys() == {"raw", "ema"}
    # Row 4 is of steps 3 and 4: the first attempt's sums are in it.
    original = (FIRST / "run" / "metrics.csv").read_text().splitlines()
    names = original[0].split(",")
    before = dict(zip(names, original[2].split(","), strict=True))
    assert float(found[1]["train/loss"]) == pytest.approx(float(before["train/loss"]), rel=1e-2)
    assert float(found[1]["lr"]) == pytest.approx(float(before["lr"]))


def test_changes_since_format_1_are_found_too(tmp_path: Path) -> None:
    run = of_format_1(tmp_path)
    config = load_config([str(run.config_file)], ["optimizer.lr=0.3"]).config

    with pytest.raises(ConfigError, match=r"optimizer\.lr"):
        choose(run, config)


def test_a_checkpoint_of_a_later_format_is_refused(trained: RunDirectory, tmp_path: Path) -> None:
    run = as_killed_after(trained, tmp_path, step=12)
    file = run.checkpoints / "step-000000012" / MANIFEST
    file.write_text(json.dumps(json.loads(file.read_text()) | {"format_version": 3}))

    with pytest.raises(DataError, match="is of format 3; this effnet knows up to 2"):
        train(run, attempt=1)
    assert file.exists()
