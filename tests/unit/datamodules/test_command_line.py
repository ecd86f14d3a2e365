"""`python -m datamodules` as its users start it: real processes, messages without traceback, exit code 93."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.exit_codes import EXIT_DO_NOT_RETRY
from datamodules.indexing.index_files import index_file, load_index
from datamodules.indexing.urls import expand
from tests.conftest import picture


def run(*arguments: str, expected: int = 0, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "datamodules", *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    output = done.stdout + done.stderr
    assert done.returncode == expected, output
    assert "Traceback" not in output
    return output


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    for i in range(12):
        path = tmp_path / "images" / f"class{i % 3}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i, size=8))
    return tmp_path / "images"


def test_a_folder_of_images_becomes_shards_and_an_index(image_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--name", "toy", "--split", "train", "--num-shards", "3", "--seed", "5")
    assert "12 images of 3 classes in 3 shards" in run("build", str(image_folder), str(out), *options)
    assert json.loads((out / "classes.json").read_text()) == ["class0", "class1", "class2"]
    pattern = f"{out}/toy-train-{{00000..00002}}.tar"
    assert "12 samples in 3 shards" in run("index", pattern)
    paths = expand(pattern)
    index = load_index(paths, index_file(paths, None))
    assert index is not None
    assert sorted(index.labels.tolist()) == sorted([0, 1, 2] * 4)
    run("index", pattern, "--index-dir", str(tmp_path / "indexes"))
    assert load_index(paths, index_file(paths, str(tmp_path / "indexes"))) is not None


def test_digits_are_built_once(tmp_path: Path) -> None:
    run("digits", str(tmp_path))
    times = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert len(times) == 22
    run("digits", str(tmp_path))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == times


def test_mistakes_are_one_message_and_exit_code_93(image_folder: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.tar"
    damaged.write_bytes(b"x" * 2000)
    (tmp_path / "taken").write_text("a file")
    (tmp_path / "empty").mkdir()
    for arguments, what in [
        (("index", str(tmp_path / "gone.tar")), "gone.tar does not exist"),
        (("index", str(damaged)), "damaged.tar: not a "),
        (("index", "pipe:cat a.tar"), "pipe: would run a command"),
        (("build", str(tmp_path / "empty"), str(tmp_path / "out")), "no folder per class in it"),
        (("build", str(image_folder), str(tmp_path / "out")), "12 images cannot fill 1024 shards"),
        (("build", str(image_folder), str(tmp_path / "taken" / "out"), "--num-shards", "2"), "Not a directory"),
    ]:
        output = run(*arguments, expected=EXIT_DO_NOT_RETRY)
        assert output.startswith("error: ")
        assert what in output
        assert len(output.splitlines()) == 1


@pytest.mark.parametrize("command", ["index", "verify", "info"])
def test_a_url_with_a_secret_is_refused_and_not_repeated(command: str) -> None:
    url = "https://me:hidden@host.invalid/{00..09}.tar"
    output = run(command, url, expected=EXIT_DO_NOT_RETRY)
    assert output.startswith("error: shards 'https://…@host.invalid/{00..09}.tar': accepted are URLs without passwords")
    assert len(output.splitlines()) == 1
    assert "hidden" not in output


def test_the_help_names_the_commands_and_imports_no_torch(tmp_path: Path) -> None:
    output = run("--help")
    assert all(command in output for command in ("build", "index", "digits"))
    code = (
        "import runpy, sys\n"
        "sys.argv[1:] = ['--help']\n"
        "try:\n    runpy.run_module('datamodules', run_name='__main__')\n"
        "except SystemExit:\n    pass\n"
        "heavy = {'torch', 'timm', 'webdataset', 'pytorch_lightning', 'sklearn'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=120)


def test_an_unknown_option_is_a_usage_error() -> None:
    assert "No such option" in run("build", "a", "b", "--shards", "3", expected=2)
