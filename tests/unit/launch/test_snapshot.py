"""The snapshot of the code, from real checkouts and without git."""

import json
from pathlib import Path

import pytest

from configs.run import RunDirectory
from launch.snapshot import ROOT, code_files, snapshot
from tests.git import git
from trainer.environment import git_state


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with a commit, a change and a new file, an ignored file, and files that may hold secrets."""
    root = tmp_path / "checkout"
    for package in ("configs", "datamodules", "launch", "trainer"):
        (root / package).mkdir(parents=True)
        (root / package / "__init__.py").touch()
    (root / "trainer/module.py").write_text("VERSION = 1\n")
    (root / ".gitignore").write_text("ignored.py\n__pycache__/\n")
    git(root, "init", "--quiet")
    git(root, "add", ".")
    git(root, "commit", "--quiet", "-m", "one")
    (root / "trainer/module.py").write_text("VERSION = 2\n")
    (root / "trainer/new.py").touch()
    (root / "trainer/ignored.py").touch()
    (root / "trainer/.env").write_text("WANDB_API_KEY=x")
    (root / "notes.txt").touch()
    return root


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs/mine")


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_changes_and_new_files_are_kept_and_nothing_ignored_or_hidden(checkout: Path, run: RunDirectory) -> None:
    code = snapshot(run, checkout)

    assert code.parent == run.launch_dir
    assert names(code) == {
        "configs/__init__.py",
        "datamodules/__init__.py",
        "launch/__init__.py",
        "trainer/__init__.py",
        "trainer/module.py",
        "trainer/new.py",
        "snapshot.json",
    }
    assert (code / "trainer/module.py").read_text() == "VERSION = 2\n"
    assert {path.name for path in run.launch_dir.iterdir()} == {code.name}


def test_editing_the_checkout_makes_another_snapshot_and_leaves_the_first(checkout: Path, run: RunDirectory) -> None:
    first, again = snapshot(run, checkout), snapshot(run, checkout)
    (checkout / "trainer/module.py").write_text("VERSION = 3\n")
    second = snapshot(run, checkout)

    assert first == again != second
    assert (first / "trainer/module.py").read_text() == "VERSION = 2\n"
    # The code's hash does not depend on where it came from.
    assert snapshot(RunDirectory(run.path.with_name("other")), second).name == second.name


def test_a_snapshot_says_which_commit_and_changes_it_is_of(checkout: Path, run: RunDirectory) -> None:
    code = snapshot(run, checkout)

    commit, diff = git_state(code)
    assert commit == git(checkout, "rev-parse", "HEAD")
    assert "+VERSION = 2" in diff
    assert (
        snapshot(RunDirectory(run.path.with_name("b")), code).joinpath("snapshot.json").read_text()
        == (code / "snapshot.json").read_text()
    )


def test_without_git_the_packages_are_kept_as_they_are(
    checkout: Path, run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    (checkout / "trainer/__pycache__").mkdir()
    (checkout / "trainer/__pycache__/module.cpython-311.pyc").touch()

    code = snapshot(run, checkout)

    assert {"trainer/new.py", "trainer/ignored.py"} < names(code)
    assert not {name for name in names(code) if name.endswith(".pyc") or ".env" in name or "notes" in name}
    assert json.loads((code / "snapshot.json").read_text()) == {"git_sha": None, "diff": ""}


def test_this_code_is_all_there() -> None:
    files = {str(file) for file in code_files(ROOT)}

    assert {"launch/snapshot.py", "trainer/__main__.py", "configs/hardware/cpu.yaml"} <= files
    assert not {file for file in files if file.startswith(("tests", "docs"))}
