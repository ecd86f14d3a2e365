"""Checkpoints that a user names: where they lie, and what a run gives up for them."""

import json
import shutil
from pathlib import Path

import pytest

from configs.files import read_json
from configs.load import load_config
from configs.problems import DataError
from configs.run import RunDirectory, with_absolute_resume
from tests.unit.configs.loading import config_of
from tests.unit.launch.commands import effnet
from tests.unit.trainer.runs import as_killed_after
from tests.unit.trainer.test_resuming import choose
from trainer.checkpoint_files import MANIFEST
from trainer.checkpoints import SUPERSEDED


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


def test_a_run_that_cannot_go_on_from_a_named_checkpoint_keeps_all_that_it_has(
    trained: RunDirectory, tmp_path: Path
) -> None:
    run, copy = as_killed_after(trained, tmp_path, step=7), tmp_path / "step-000000005"
    shutil.copytree(run.checkpoints / copy.name, copy)
    manifest = read_json(copy / MANIFEST)
    (copy / MANIFEST).write_text(json.dumps(manifest | {"format_version": 3}))
    config = load_config([str(run.config_file)], [f"resume={copy}"]).config
    with pytest.raises(DataError, match="is of format 3"):
        choose(run, config)

    assert not (run.checkpoints / SUPERSEDED).exists()
    assert not run.rollbacks_file.exists()
    assert choose(run, run.load_config()).step == 7
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert choose(run, config).step == 5
    assert len(list((run.checkpoints / SUPERSEDED).iterdir())) == 2
