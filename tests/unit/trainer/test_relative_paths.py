"""Paths of checkpoints that a user gives as seen from a folder, and attempts that begin in another one."""

from pathlib import Path

import pytest

from configs.run import RunDirectory, read_json, with_absolute_resume
from tests.unit.configs.loading import config_of
from tests.unit.launch.commands import effnet
from tests.unit.trainer.runs import as_killed_after
from tests.unit.trainer.test_resuming import choose
from trainer.checkpoint_files import MANIFEST


def test_a_named_checkpoint_is_where_the_command_was_given_for_later_attempts_elsewhere_too(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = as_killed_after(trained, tmp_path, step=7)
    wanted = "checkpoints/step-000000005"
    done = effnet("fit", f"--run={run.path}", f"resume={wanted}", "trainer.max_steps=6", cwd=run.path)
    assert done.returncode == 0, done.stdout + done.stderr

    assert run.load_config().resume.checkpoint == str(run.path / wanted)
    assert read_json(run.checkpoints / "step-000000006" / MANIFEST)["resume"] == str(run.path / wanted)
    monkeypatch.chdir(tmp_path)
    assert choose(run, run.load_config()).step == 6


def test_a_path_is_absolute_from_the_folder_that_is_given() -> None:
    def absolute(resume: str) -> str:
        return with_absolute_resume(config_of(f"resume={resume}"), Path("/work")).resume.checkpoint

    assert absolute("runs/./a/step-000000005/") == "/work/runs/a/step-000000005"
    assert absolute("/runs/a/step-000000005") == "/runs/a/step-000000005"
    assert absolute("~/a") == str(Path.home() / "a")
    assert [absolute(word) for word in ("auto", "never")] == ["auto", "never"]
