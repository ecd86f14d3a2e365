import logging
import time
from pathlib import Path

import pytest

from configs.run import STARTED, RunDirectory
from trainer import triggers
from trainer.triggers import SAVE, STOP, Triggers


@pytest.fixture(autouse=True)
def _always_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "LOOK_EVERY_S", 0.0)


def test_without_a_reason_no_save_is_due(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=None)

    assert not any(asked.save_is_due() for _ in range(100))
    assert not asked.stop


def test_a_save_is_due_once_for_each_time_that_passes(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=0.2)
    assert not asked.save_is_due()
    time.sleep(0.25)
    assert asked.save_is_due()
    assert not asked.save_is_due()


def test_time_is_counted_from_the_launchers_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(STARTED, str(time.time() - 50))
    assert not Triggers(tmp_path, every_s=None).time_is_up
    assert not Triggers(tmp_path, every_s=None, max_time_s=500).time_is_up
    assert Triggers(tmp_path, every_s=None, max_time_s=49).time_is_up

    monkeypatch.delenv(STARTED)  # then, of this process, which is older than nothing
    assert Triggers(tmp_path, every_s=None, max_time_s=1e-3).time_is_up
    assert not Triggers(tmp_path, every_s=None, max_time_s=1e6).time_is_up


def test_another_save_begins_the_time_anew(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=1.0)
    time.sleep(0.6)
    asked.started()
    time.sleep(0.6)
    assert not asked.save_is_due()


def test_a_failed_save_is_due_before_its_time(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=None)
    asked.retry_in(0.1)
    assert not asked.save_is_due()
    time.sleep(0.15)
    assert asked.save_is_due()
    assert not asked.save_is_due()


def test_a_file_asks_for_a_save_and_is_removed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = Triggers(tmp_path, every_s=None)
    (tmp_path / SAVE).touch()
    with caplog.at_level(logging.INFO, logger="effnet"):
        assert asked.save_is_due()
    assert not (tmp_path / SAVE).exists()
    assert f"{tmp_path / SAVE} was honoured, and removed" in caplog.text
    assert not asked.save_is_due()


def test_a_file_asks_to_stop_and_is_removed_when_that_is_done(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=None)
    (tmp_path / STOP).touch()
    assert not asked.save_is_due()
    assert asked.stop
    assert (tmp_path / STOP).exists()  # until it is honoured
    asked.stopped()
    assert not (tmp_path / STOP).exists()
    assert not asked.stop


@pytest.mark.parametrize("launched", [True, False])
def test_a_run_that_a_file_has_stopped_does_not_come_again_from_the_queue(launched: bool, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    if launched:
        run.launch_dir.mkdir()
    asked = Triggers(tmp_path, every_s=None)
    asked.stopped()
    assert not run.cancelled_file.exists()
    (tmp_path / STOP).touch()
    asked.save_is_due()
    asked.stopped()
    assert run.cancelled_file.exists() == launched


def test_a_file_that_is_taken_back_asks_for_nothing(tmp_path: Path) -> None:
    asked = Triggers(tmp_path, every_s=None)
    (tmp_path / STOP).touch()
    asked.save_is_due()
    (tmp_path / STOP).unlink()
    asked.save_is_due()
    assert not asked.stop


def test_the_directory_is_looked_at_once_in_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "LOOK_EVERY_S", 3600.0)
    asked = Triggers(tmp_path, every_s=None)
    asked.save_is_due()
    (tmp_path / STOP).touch()
    (tmp_path / SAVE).touch()
    assert not asked.save_is_due()
    assert not asked.stop
