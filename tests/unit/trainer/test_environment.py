import json
import shutil
import sys
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.git import git
from trainer import environment
from trainer.environment import git_state, record_environment

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "--quiet")
    (folder / "code.py").write_text("a = 1\n")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--message", "First")
    return folder


def test_a_clean_checkout_is_its_commit(checkout: Path) -> None:
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), "")


def test_uncommitted_changes_are_kept_as_a_patch_that_applies(checkout: Path) -> None:
    (checkout / "code.py").write_text("a = 2\n")
    commit, diff = git_state(checkout)

    assert commit == git(checkout, "rev-parse", "HEAD")
    assert "-a = 1\n+a = 2\n" in diff
    git(checkout, "checkout", "--quiet", "code.py")
    (checkout.parent / "saved.diff").write_text(diff)
    git(checkout, "apply", str(checkout.parent / "saved.diff"))
    assert (checkout / "code.py").read_text() == "a = 2\n"


def test_a_checkout_reached_by_a_link_is_one(checkout: Path) -> None:
    link = checkout.parent / "link"
    link.symlink_to(checkout)

    assert git_state(link)[0] == git(checkout, "rev-parse", "HEAD")


def test_there_is_no_state_outside_a_checkout(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, "")


def test_a_package_installed_inside_another_repository_is_not_of_it(checkout: Path) -> None:
    (checkout / "venv" / "site-packages").mkdir(parents=True)

    assert git_state(checkout / "venv" / "site-packages") == (None, "")


def test_a_repository_without_a_commit_has_none(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")

    assert git_state(tmp_path) == (None, "")


def test_there_is_no_state_without_git(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(checkout))

    assert git_state(checkout) == (None, "")


def test_changes_that_are_no_utf8_are_kept_byte_for_byte(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (checkout / "code.py").write_bytes(b"# caf\xe9\n")
    state = git_state(checkout)
    monkeypatch.setattr(environment, "git_state", lambda: state)
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    record_environment(run, attempt=0, world_size=1)

    assert b"+# caf\xe9\n" in (run.path / "uncommitted.diff").read_bytes()


def test_every_attempt_adds_what_it_ran_with(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.path.mkdir()
    commits = [record_environment(run, attempt=attempt, world_size=2) for attempt in (0, 1)]

    entries = json.loads(run.environment_file.read_text())
    assert [entry["attempt"] for entry in entries] == [0, 1]
    for entry, commit in zip(entries, commits, strict=True):
        assert entry["git_sha"] == commit
        assert entry["world_size"] == 2
        assert entry["command"] == sys.orig_argv
        assert entry["packages"]["torch"] is not None
        assert entry["python"] == ".".join(map(str, sys.version_info[:3]))
        assert entry["uncommitted_changes"] == (run.path / "uncommitted.diff").exists()
