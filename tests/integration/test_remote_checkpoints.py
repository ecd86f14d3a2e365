"""Checkpoints in a real S3 API, and in other places that fsspec writes to."""

import io
import logging
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from rich.console import Console

from configs.load import load_config
from configs.problems import ConfigError, UnreachableError
from configs.run import RunDirectory, config_hash
from datamodules import bars
from datamodules.bars import progress_on
from tests.integration import runs as launched
from tests.integration.test_equivalence import assert_same
from tests.s3 import S3, s3_server
from tests.unit.trainer.runs import checkpoint, new_run, rows, train
from tests.unit.trainer.settings import settings
from trainer import fetching, saver
from trainer.checkpoint_files import CHECKPOINT, MANIFEST, read_manifest, verify
from trainer.checkpointing import Interrupted
from trainer.checkpoints import CheckpointDirectory
from trainer.fetching import fetch_newest, share_rollbacks
from trainer.remote_checkpoints import RemoteCheckpoints
from trainer.retention import Retention
from trainer.rollback import Rollbacks
from trainer.saves import FAILURES, SaveFailedError
from trainer.triggers import STOP

Overrides = Callable[..., list[str]]
STEPS = 17


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "FIRST_PAUSE_S", 0.05)
    monkeypatch.setattr(fetching, "FIRST_PAUSE_S", 0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[S3]:
    with s3_server("models") as running:
        yield running


@pytest.fixture(params=["s3", "file", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder that exists, as far as such a thing does there."""
    if request.param == "s3":
        request.getfixturevalue("server")
    places = {
        "s3": f"s3://models/{tmp_path.name}",
        "file": f"file://{tmp_path}/remote",
        "memory": f"memory://{tmp_path}",
    }
    return places[request.param]


def remote_of(folder: str) -> RemoteCheckpoints:
    found = RemoteCheckpoints.of(settings(checkpoint__remote_dir=folder), "run")
    assert found is not None
    return found


def saved(directory: CheckpointDirectory, step: int, **manifest: Any) -> Path:
    part = directory.begin(step) / CHECKPOINT / "rank_0" / "part.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(f"part of {step}".encode() * 1000)
    (directory.temporary(step) / "weights.safetensors").write_bytes(b"weights")
    return directory.commit(step, manifest=manifest)


@pytest.fixture
def here(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "here" / "checkpoints")


@pytest.fixture
def elsewhere(tmp_path: Path) -> CheckpointDirectory:
    return CheckpointDirectory(tmp_path / "elsewhere" / "checkpoints")


# One checkpoint


def test_what_is_uploaded_comes_back_as_it_was(
    folder: str, here: CheckpointDirectory, elsewhere: CheckpointDirectory
) -> None:
    remote, path = remote_of(folder), saved(here, 7, world_size=2)
    assert remote.steps() == []
    remote.check()
    remote.upload(path)
    remote.upload(path)  # nothing more to do

    assert remote.steps() == [7]
    fetched = remote.download(7, elsewhere)
    assert fetched == elsewhere.newest() == elsewhere.named(7)
    assert read_manifest(elsewhere.named(7)) == read_manifest(path)
    assert (elsewhere.path / "LATEST").read_text() == "step-000000007\n"
    assert sorted(path.name for path in elsewhere.path.iterdir()) == ["LATEST", "step-000000007"]


def test_fetching_shows_how_much_has_come(
    folder: str, here: CheckpointDirectory, elsewhere: CheckpointDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    temporary = here.begin(7)
    for name in ("weights.safetensors", CHECKPOINT):
        (temporary / name).write_bytes(bytes(6_600_000))
    remote, log, screen = remote_of(folder), io.StringIO(), io.StringIO()
    remote.upload(here.commit(7, manifest={}))
    assert remote.download(7, elsewhere, bar=progress_on(Console(file=log, width=200))) is not None
    assert remote.download(7, elsewhere, bar=progress_on(Console(file=screen, width=99, force_terminal=True)))

    last = log.getvalue().splitlines()[-1]
    assert last.startswith("fetching step-000000007 (MB): 13 of 13 (100%)")
    assert "fetching step-000000007 (MB)" in screen.getvalue()


def test_an_upload_that_is_cut_off_is_no_checkpoint(folder: str, here: CheckpointDirectory) -> None:
    remote, path = remote_of(folder), saved(here, 7)
    (path / "weights.safetensors").rename(path / "hidden")
    with pytest.raises(FileNotFoundError):
        remote.upload(path)
    assert remote.steps() == []

    (path / "hidden").rename(path / "weights.safetensors")
    remote.upload(path)
    assert remote.steps() == [7]


def test_a_step_that_is_saved_again_replaces_the_one_there(
    folder: str, here: CheckpointDirectory, elsewhere: CheckpointDirectory
) -> None:
    remote = remote_of(folder)
    remote.upload(saved(here, 7, attempt=0))
    remote.upload(saved(here, 7, attempt=1))

    assert remote.download(7, elsewhere) is not None
    assert read_manifest(elsewhere.named(7))["attempt"] == 1


def test_what_no_rule_keeps_and_what_was_cut_off_is_removed(folder: str, here: CheckpointDirectory) -> None:
    remote = remote_of(folder)
    for step, value in ((10, 0.9), (20, 0.5), (30, 0.7), (40, 0.6)):
        remote.upload(saved(here, step, metrics={"val/top1": value}))
    (here.named(20) / CHECKPOINT / "rank_0" / "part.pt").unlink()
    root = remote.filesystem._strip_protocol(remote.url)
    remote.filesystem.rm_file(f"{root}/step-000000020/{MANIFEST}")
    remote.prune(Retention(last=1, best=1, monitor="val/top1"), saved=40)

    assert remote.steps() == [40, 10]
    assert not [name for name in remote.filesystem.find(root) if "step-000000020" in name or "step-000000030" in name]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        (f"{CHECKPOINT}/rank_0/part.pt", b"another", "7 bytes instead of"),
        ("weights.safetensors", b"WEIGHTS", "weights.safetensors has another checksum than its manifest"),
        ("weights.safetensors", None, "weights.safetensors is missing"),
        (MANIFEST, b"{", "no readable manifest"),
        (MANIFEST, b'{"step": 9, "files": {"../../outside": {}}}', "its manifest names files outside of it"),
        (MANIFEST, b'{"step": 9, "files": {"/etc/passwd": {}}}', "its manifest names files outside of it"),
    ],
)
def test_what_is_damaged_there_is_passed_over_for_an_earlier_one(
    name: str,
    content: bytes | None,
    reason: str,
    server: S3,
    here: CheckpointDirectory,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = settings(checkpoint__remote_dir=f"s3://models/{tmp_path.name}")
    remote = RemoteCheckpoints.of(config, "elsewhere")
    assert remote is not None
    for step in (8, 9):
        remote.upload(saved(here, step))
    place = f"models/{tmp_path.name}/elsewhere/step-000000009/{name}"
    remote.filesystem.rm_file(place) if content is None else remote.filesystem.pipe_file(place, content)

    run = RunDirectory(tmp_path / "elsewhere")
    with caplog.at_level(logging.WARNING, logger="effnet"):
        fetch_newest(config, run)
    assert CheckpointDirectory(run.checkpoints).newest() == run.checkpoints / "step-000000008"
    assert not list(run.checkpoints.glob("*.tmp"))
    assert f"{remote.named(9)} is passed over" in caplog.text
    assert reason in caplog.text


# Which one is fetched


def test_the_newest_is_fetched_unless_a_newer_one_is_here(folder: str, tmp_path: Path) -> None:
    config = settings(checkpoint__remote_dir=folder)
    there, run = CheckpointDirectory(tmp_path / "there"), RunDirectory(tmp_path / "run")
    remote = remote_of(folder)
    for step in (10, 20):
        remote.upload(saved(there, step, config_hash=config_hash(config), wandb_id="abc12345"))
    mine = CheckpointDirectory(run.checkpoints)

    assert run.wandb_id() != "abc12345"
    fetch_newest(config, run)
    assert [path.name for path in mine.verified()] == ["step-000000020"]
    assert run.wandb_id() == "abc12345"  # one run in W&B, wherever it goes on

    saved(mine, 30)
    fetch_newest(config, run)
    assert mine.newest() == mine.named(30)
    shutil.rmtree(mine.named(20))
    fetch_newest(config, run)
    assert not mine.named(20).exists()

    (mine.named(30) / "weights.safetensors").unlink()  # it does not verify any more
    fetch_newest(config, run)
    assert mine.newest() == mine.named(20)


def test_a_run_that_goes_back_on_a_new_machine_finds_what_is_older_there(folder: str, tmp_path: Path) -> None:
    config = settings(checkpoint__remote_dir=folder)
    there, run = CheckpointDirectory(tmp_path / "there"), RunDirectory(tmp_path / "run")
    for step in (10, 20, 30):
        remote_of(folder).upload(saved(there, step, rollbacks=0))
    fetch_newest(config, run)
    assert CheckpointDirectory(run.checkpoints).newest() == run.checkpoints / "step-000000030"
    Rollbacks.read(run.rollbacks_file).add(before_step=15, next_batch=33)
    fetch_newest(config, run)
    assert (run.checkpoints / "step-000000010").exists()
    assert not (run.checkpoints / "step-000000020").exists()

    # What the run knows of itself is there too, for the next machine.
    moved = RunDirectory(tmp_path / "moved" / "run")
    fetch_newest(config, moved)
    assert [path.name for path in CheckpointDirectory(moved.checkpoints).verified()] == ["step-000000010"]
    rollbacks, checkpoints = Rollbacks.read(moved.rollbacks_file), CheckpointDirectory(moved.checkpoints)
    assert rollbacks.next_batch(checkpoints.newest(), checkpoints) == 33


def test_what_a_user_went_back_behind_is_not_fetched_on_another_machine(folder: str, tmp_path: Path) -> None:
    config = settings(checkpoint__remote_dir=folder)
    run, moved = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "moved" / "run")
    mine = CheckpointDirectory(run.checkpoints)
    for step in (10, 20, 30):
        remote_of(folder).upload(saved(mine, step, rollbacks=0))
    Rollbacks.read(run.rollbacks_file).rewind(10, resume=str(mine.named(10)))
    share_rollbacks(config, run)
    shutil.rmtree(mine.named(20))
    remote_of(folder).upload(saved(mine, 20, rollbacks=1))

    fetch_newest(config, moved)
    assert [path.name for path in CheckpointDirectory(moved.checkpoints).verified()] == ["step-000000020"]
    assert read_manifest(moved.checkpoints / "step-000000020")["rollbacks"] == 1


def test_a_named_checkpoint_needs_no_newer_one_of_the_same_settings(folder: str, tmp_path: Path) -> None:
    """As where a user goes back because of a change that was no good."""
    run = RunDirectory(tmp_path / "run")
    mine = CheckpointDirectory(run.checkpoints)
    changed = settings(checkpoint__remote_dir=folder, optimizer__lr=0.5).model_dump(mode="json")
    path = saved(mine, 10)
    remote_of(folder).upload(saved(CheckpointDirectory(tmp_path / "there"), 20, config=changed))

    fetch_newest(settings(checkpoint__remote_dir=folder, resume=path), run)
    assert mine.newest() == path
    with pytest.raises(ConfigError, match="of another experiment"):
        fetch_newest(settings(checkpoint__remote_dir=folder), run)


def test_a_checkpoint_under_another_ones_name_is_damaged(folder: str, tmp_path: Path) -> None:
    remote = remote_of(folder)
    for step in (8, 9):
        remote.upload(saved(CheckpointDirectory(tmp_path / "there"), step))
    root = remote.filesystem._strip_protocol(remote.url)
    content = remote.filesystem.cat_file(f"{root}/step-000000009/{MANIFEST}")
    remote.filesystem.pipe_file(f"{root}/step-000000009/{MANIFEST}", content.replace(b'"step": 9', b'"step": 7'))

    run = RunDirectory(tmp_path / "run")
    fetch_newest(settings(checkpoint__remote_dir=folder), run)
    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000000008"]


def test_without_a_remote_folder_nothing_is_asked_for(tmp_path: Path) -> None:
    fetch_newest(settings(), RunDirectory(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_another_experiment_of_the_same_id_is_refused(server: S3, here: CheckpointDirectory, tmp_path: Path) -> None:
    folder = f"s3://models/{tmp_path.name}"
    remote_of(folder).upload(saved(here, 10, config_hash="of something else"))
    with pytest.raises(ConfigError, match="step-000000010 is of another experiment") as caught:
        fetch_newest(settings(checkpoint__remote_dir=folder), RunDirectory(tmp_path / "run"))
    assert caught.value.problems[0].key == "checkpoint.remote_dir"
    assert not (tmp_path / "run").exists()


def test_resume_never_refuses_a_run_that_has_begun_elsewhere(
    server: S3, here: CheckpointDirectory, tmp_path: Path
) -> None:
    folder = f"s3://models/{tmp_path.name}"
    remote_of(folder).upload(saved(here, 10))
    with pytest.raises(ConfigError, match="step-000000010 exists") as caught:
        fetch_newest(settings(checkpoint__remote_dir=folder, resume="never"), RunDirectory(tmp_path / "run"))
    assert caught.value.problems[0].key == "resume.checkpoint"


def test_a_bucket_that_is_not_there_is_a_mistake(server: S3, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bucket") as caught:
        fetch_newest(settings(checkpoint__remote_dir="s3://absent/runs"), RunDirectory(tmp_path / "run"))
    assert caught.value.problems[0].key == "checkpoint.remote_dir"


def test_a_server_that_is_away_is_no_reason_to_begin_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_server("models") as server:
        server.stop()
        with pytest.raises(UnreachableError, match=r"s3://models/runs/run: 5 attempts failed, the last with"):
            fetch_newest(settings(checkpoint__remote_dir="s3://models/runs"), RunDirectory(tmp_path / "run"))


@pytest.mark.parametrize(
    ("folder", "accepted"),
    [("nothing://bucket/x", "nothing"), ("abfs://container/x", "abfs|adlfs")],
)
def test_a_place_that_cannot_be_reached_from_here_is_a_mistake(folder: str, accepted: str) -> None:
    if folder.startswith("abfs"):
        try:
            fsspec.get_filesystem_class("abfs")
            pytest.skip("adlfs is installed")
        except ImportError:
            pass
    with pytest.raises(ConfigError, match=accepted) as caught:
        RemoteCheckpoints.of(settings(checkpoint__remote_dir=folder), "run")
    assert caught.value.problems[0].key == "checkpoint.remote_dir"


# Whole runs


@pytest.fixture
def overrides(toy_overrides: Overrides, tmp_path: Path) -> Overrides:
    def make(**changes: object) -> list[str]:
        place = {"checkpoint__remote_dir": f"s3://models/{tmp_path.name}", "trainer__max_epochs": 2}
        return toy_overrides(**(place | changes))

    return make


def uploaded(server: S3, tmp_path: Path) -> list[str]:
    found = server.keys("models", f"{tmp_path.name}/")
    return sorted({key.split("/")[2] for key in found if key.endswith(MANIFEST)})


def test_a_run_goes_on_on_another_machine_and_ends_the_same(
    server: S3, overrides: Overrides, toy_overrides: Overrides, tmp_path: Path
) -> None:
    whole = train(new_run(toy_overrides(trainer__max_epochs=2), tmp_path / "whole"))
    first = new_run(overrides(checkpoint__every_n_steps=5), tmp_path / "first")
    (first.path / STOP).touch()
    with pytest.raises(Interrupted):
        train(first)
    assert uploaded(server, tmp_path) == ["step-000000001"]

    second = new_run(overrides(checkpoint__every_n_steps=5), tmp_path / "second")
    assert second.wandb_id() != first.wandb_id()
    train(second, attempt=1)
    assert rows(second)[0]["step"] == "2"
    assert uploaded(server, tmp_path)[-1] == "step-000000017"
    assert_same(checkpoint(whole, STEPS), checkpoint(second, STEPS))
    assert second.wandb_id() == first.wandb_id()


def test_an_upload_that_an_attempt_did_not_come_to_is_made_by_the_next(
    server: S3, overrides: Overrides, tmp_path: Path
) -> None:
    run = train(new_run(overrides(checkpoint__remote_dir=None), tmp_path))
    assert uploaded(server, tmp_path) == []
    config = load_config([str(run.config_file)], [f"checkpoint.remote_dir=s3://models/{tmp_path.name}"]).config
    run.freeze(config)
    train(run, attempt=1)
    assert uploaded(server, tmp_path) == ["step-000000017"]


def test_a_server_that_goes_away_and_comes_back_costs_no_checkpoint(
    overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with s3_server("models") as server:
        run = new_run(
            overrides(
                trainer__max_epochs=40,
                checkpoint__every_n_steps=4,
                checkpoint__every_n_epochs=100,
                checkpoint__retry_pause_s=0.05,
                checkpoint__max_failures=1000,
            ),
            tmp_path,
        )
        seen: list[list[str]] = []

        def go_and_come() -> None:
            _until(lambda: bool(list(run.checkpoints.glob("step-*/manifest.json"))))
            server.stop()
            _until(lambda: run.metrics_file.exists() and any(row.get(FAILURES) for row in rows(run)))
            seen.append([str(path) for path in run.checkpoints.glob("step-*") if verify(path) is None])
            server.start("models")

        thread = threading.Thread(target=go_and_come, daemon=True)
        thread.start()
        with caplog.at_level(logging.WARNING, logger="effnet"):
            train(run)
        thread.join()
        assert seen
        assert seen[0]  # what is here was not touched
        assert "s3://models/" in caplog.text
        newest = CheckpointDirectory(run.checkpoints).newest()
        assert newest is not None
        assert uploaded(server, tmp_path)[-1] == newest.name


def test_a_run_whose_last_upload_fails_does_not_end_well_and_names_what_is_here(
    overrides: Overrides, tmp_path: Path
) -> None:
    with s3_server("models") as server:
        run = new_run(overrides(checkpoint__every_n_epochs=100), tmp_path)

        def go() -> None:
            _until(lambda: run.metrics_file.exists() and len(rows(run)) >= 3)
            server.stop()

        thread = threading.Thread(target=go, daemon=True)
        thread.start()
        with pytest.raises(SaveFailedError, match=r"s3://models/.*step-000000017: .*is .*/step-000000017$"):
            train(run)
        thread.join()
    assert verify(run.checkpoints / "step-000000017") is None


def test_two_processes_go_on_from_a_remote_checkpoint(server: S3, overrides: Overrides, tmp_path: Path) -> None:
    """All ranks pick what rank 0 has fetched."""
    two = overrides(trainer__devices=2)
    first = launched.train(two, runs_dir=tmp_path, run_id="moved")
    shutil.rmtree(first.path)
    for key in server.keys("models", f"{tmp_path.name}/moved/step-000000017"):
        server.client().delete_object(Bucket="models", Key=key)

    second = launched.train(two, runs_dir=tmp_path, run_id="moved")
    assert "resumed at step 9" in launched.logs(second)
    assert launched.rows(second)[0]["step"] == "10"


def _until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
