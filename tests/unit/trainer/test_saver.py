"""The thread that writes checkpoints, on real disks that fail."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.disks import fill, remount, small_disk
from trainer import saver
from trainer.checkpoint_files import CHECKPOINT, CheckpointFile, read_manifest, verify
from trainer.checkpoints import LATEST, CheckpointDirectory
from trainer.retention import Retention
from trainer.saver import ATTEMPTS, Result, Saver, reason

MEGABYTE = 1 << 20


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saver, "FIRST_PAUSE_S", 0.05)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", size_bytes=8 * MEGABYTE) as place:
        yield place


def state(number: int, *, values: int = 1000) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((values,), float(number))}


def begin(writer: Saver, step: int, *, values: int = 1000) -> None:
    writer.save(
        step, {}, lambda folder: CheckpointFile().save_checkpoint(state(step, values=values), folder / CHECKPOINT)
    )


def save(writer: Saver, step: int, *, values: int = 1000) -> Result:
    begin(writer, step, values=values)
    assert writer.wait()
    (result,) = writer.results()
    return result


def there(directory: CheckpointDirectory) -> list[str]:
    return sorted(path.name for path in directory.path.iterdir() if path.name != "filler")


def test_a_save_is_written_verified_by_its_manifest_and_the_oldest_give_way(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    writer = Saver(directory, Retention(last=2))
    results = [save(writer, step) for step in (1, 2, 3)]

    assert [result.error for result in results] == [None] * 3
    assert there(directory) == [LATEST, "step-000000002", "step-000000003"]
    assert verify(directory.named(3)) is None
    assert read_manifest(directory.named(3))["write_s"] >= 0
    assert writer.results() == []


def test_a_save_runs_beside_the_caller_and_the_next_one_waits_for_it(tmp_path: Path) -> None:
    directory, go_on, running = CheckpointDirectory(tmp_path), threading.Event(), threading.Event()
    writer = Saver(directory, Retention(last=5))

    def slowly(folder: Path) -> None:
        running.set()
        assert go_on.wait(60)
        CheckpointFile().save_checkpoint(state(1), folder / CHECKPOINT)

    writer.save(1, {}, slowly)
    assert running.wait(60)  # and here is the caller
    assert not writer.wait(0.01)
    assert writer.results() == []
    assert there(directory) == ["step-000000001.tmp"]
    threading.Timer(0.3, go_on.set).start()
    begin(writer, 2)
    assert [result.step for result in writer.results()][:1] == [1]
    assert writer.wait()
    assert there(directory) == [LATEST, "step-000000001", "step-000000002"]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_rest_and_says_so(
    disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = CheckpointDirectory(disk)
    writer = Saver(directory, Retention(last=2))
    assert save(writer, 1).error is None
    fill(disk, leave_bytes=MEGABYTE)

    with caplog.at_level(logging.WARNING, logger="effnet"):
        result = save(writer, 2, values=MEGABYTE)
    assert result.path is None
    assert result.error is not None
    assert str(directory.named(2)) in result.error
    assert "No space left on device" in result.error
    assert caplog.text.count("No space left on device") == ATTEMPTS - 1
    assert there(directory) == [LATEST, "step-000000001"]
    assert directory.newest() == directory.named(1)

    (disk / "filler").unlink()
    assert save(writer, 2, values=MEGABYTE).error is None
    assert directory.newest() == directory.named(2)


def test_a_disk_that_is_full_for_every_byte_changes_nothing(disk: Path) -> None:
    directory = CheckpointDirectory(disk)
    writer = Saver(directory, Retention(last=2))
    assert save(writer, 1).error is None
    for leave in (0, 4096, 8192, 16384, 20480, 32768):
        filler = fill(disk, leave_bytes=leave)
        result = save(writer, 2, values=10_000)
        assert "No space left on device" in (result.error or ""), leave
        filler.unlink()
        assert there(directory) == [LATEST, "step-000000001"], leave
        assert (disk / LATEST).read_text() == "step-000000001\n"
        assert directory.newest() == directory.named(1)


def test_a_disk_that_is_full_for_a_moment_is_tried_again(disk: Path) -> None:
    directory = CheckpointDirectory(disk)
    writer, tries = Saver(directory, Retention(last=2)), []
    filler = fill(disk)

    def write(folder: Path) -> None:
        tries.append(folder)
        if len(tries) == 2:
            filler.unlink()
        CheckpointFile().save_checkpoint(state(1), folder / CHECKPOINT)

    writer.save(1, {}, write)
    writer.wait()
    (result,) = writer.results()
    assert result.error is None
    assert len(tries) == 2
    assert verify(directory.named(1)) is None


def test_a_disk_that_is_read_only_keeps_what_it_has(disk: Path) -> None:
    directory = CheckpointDirectory(disk)
    writer = Saver(directory, Retention(last=1))
    assert save(writer, 1).error is None
    remount(disk, "ro")
    error = save(writer, 2).error
    assert error is not None
    assert "Read-only file system" in error
    assert directory.newest() == directory.named(1)

    remount(disk, "rw")
    assert save(writer, 2).error is None
    assert there(directory) == [LATEST, "step-000000002"]


def test_what_stands_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("a file where a folder should be")
    directory = CheckpointDirectory(tmp_path / "checkpoints")
    error = save(Saver(directory, Retention(last=1)), 1).error
    assert error is not None
    assert str(directory.named(1)) in error
    assert "Not a directory" in error


def test_any_error_of_a_writer_is_a_failed_save_and_no_end_of_the_thread(tmp_path: Path) -> None:
    writer = Saver(CheckpointDirectory(tmp_path), Retention(last=1))
    writer.save(1, {}, lambda folder: CheckpointFile().save_checkpoint({"x": threading.Lock()}, folder / CHECKPOINT))
    writer.wait()
    (result,) = writer.results()
    assert "cannot pickle" in (result.error or "")
    assert save(writer, 2).error is None


def test_a_save_whose_last_move_failed_is_not_written_again(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    writer = Saver(directory, Retention(last=3))
    (tmp_path / LATEST / "in the way").mkdir(parents=True)
    assert "LATEST" in (save(writer, 1).error or "")
    written = (directory.named(1) / CHECKPOINT).stat()
    (tmp_path / LATEST / "in the way").rmdir()
    (tmp_path / LATEST).rmdir()

    assert save(writer, 1).error is None
    assert (directory.named(1) / CHECKPOINT).stat() == written
    assert (tmp_path / LATEST).read_text() == "step-000000001\n"


def test_content_that_all_ranks_have_written_is_only_named(tmp_path: Path) -> None:
    directory = CheckpointDirectory(tmp_path)
    writer = Saver(directory, Retention(last=3))
    part = directory.begin(4) / "checkpoint.ckpt" / "checkpoint" / "rank_1.pt"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"a part")
    writer.save(4, {"world_size": 2}, None)
    writer.wait()

    (result,) = writer.results()
    assert result.path == directory.named(4)
    assert read_manifest(directory.named(4))["files"]["checkpoint.ckpt/checkpoint/rank_1.pt"] == {
        "bytes": 6,
        "sha256": hashlib.sha256(b"a part").hexdigest(),
    }


def test_the_systems_own_reason_is_given_where_there_is_one() -> None:
    error = RuntimeError("unexpected pos 64 vs 0\nat inline_container.cc")  # what PyTorch puts on top
    error.__context__ = OSError(28, "No space left on device", "/x")
    assert reason(error) == "OSError: [Errno 28] No space left on device: '/x'"
    assert reason(RuntimeError("first line\nsecond")) == "RuntimeError: first line"


KILLED = """
import sys, torch
from pathlib import Path
from trainer.checkpoint_files import CHECKPOINT, CheckpointFile
from trainer.checkpoints import CheckpointDirectory
from trainer.retention import Retention
from trainer.saver import Saver

writer = Saver(CheckpointDirectory(Path(sys.argv[1])), Retention(last=2))
for step in range(1, 1000):
    state = {"weights": torch.full((20_000_000,), float(step))}
    writer.save(step, {}, lambda folder: CheckpointFile().save_checkpoint(state, folder / CHECKPOINT))
    if step == 2:
        print("ready", flush=True)  # the first is whole, for the second has begun
"""


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.35])
def test_a_process_killed_while_it_writes_leaves_the_checkpoint_before_it(delay_s: float, tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        deadline = time.monotonic() + 60
        while not list(tmp_path.glob("step-*.tmp/checkpoint.ckpt")) and time.monotonic() < deadline:
            pass
        time.sleep(delay_s)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    directory = CheckpointDirectory(tmp_path)
    newest = directory.newest()
    assert newest is not None
    finished = [path for path in tmp_path.glob("step-*") if path.suffix != ".tmp"]
    assert {verify(path) for path in finished} == {None}  # no half file has a name
    number = int(newest.name.removeprefix("step-"))
    assert torch.load(newest / CHECKPOINT, weights_only=True)["weights"].unique().tolist() == [float(number)]

    assert save(Saver(directory, Retention(last=2)), number + 1).error is None  # and its rest is no hindrance
    assert not list(tmp_path.glob("*.tmp"))
