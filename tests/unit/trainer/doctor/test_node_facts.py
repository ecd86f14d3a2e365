"""What a node says of its disks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.doctor.node_facts import _disk

NOBODY = 65534


def test_a_folder_that_is_not_there_yet_is_measured_where_it_will_be(tmp_path: Path) -> None:
    facts = _disk(tmp_path / "a" / "b", write=True)
    assert facts["free"] > 0
    assert facts["bytes_per_s"] > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("below", [".", "b/c"])
def test_a_file_in_place_of_a_folder_is_a_fault(tmp_path: Path, below: str) -> None:
    (tmp_path / "a").touch()
    assert set(_disk(tmp_path / "a" / below, write=True)) == {"path", "error"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_that_may_not_be_entered_is_a_fault(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    code = (
        "import os\nfrom pathlib import Path\nfrom trainer.doctor.node_facts import _disk\n"
        f"os.setuid({NOBODY})\nprint(_disk(Path({str(closed / 'runs')!r}), write=True)['error'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "Permission denied\n", done.stderr
