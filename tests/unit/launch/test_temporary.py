import os
import sys
from pathlib import Path

import pytest

from launch.supervisor import run_command

# Leaves a file where temporary files go, says where compiled code goes, and dies of a signal.
LEAVER = """
import os, pathlib, signal, sys, tempfile
(folder,) = sys.argv[1:]
pathlib.Path(tempfile.mkdtemp(), "left").write_text("behind")
pathlib.Path(folder, "temporary").write_text(tempfile.gettempdir())
from torch._inductor.runtime.cache_dir_utils import default_cache_dir, cache_dir
pathlib.Path(folder, "compiled").write_text(cache_dir())
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_command_leaves_in_the_folder_of_temporary_files_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, logs = tmp_path / "tmp", tmp_path / "logs"
    parent.mkdir()
    logs.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(parent))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    command = [sys.executable, "-c", LEAVER, str(logs)]

    assert run_command(command, devices=1, log_dir=logs, environment=os.environ) == -9

    compiled = Path((logs / "compiled").read_text())
    assert Path((logs / "temporary").read_text()).parent == parent
    assert compiled.parent == parent  # the next attempt finds it
    assert set(parent.iterdir()) <= {compiled}
