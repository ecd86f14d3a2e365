"""Text drawn as pictures, trained on texts that every Python has, by the command in the experiment's first lines."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from configs.run import RunDirectory
from tests.integration.runs import rows

TEXTS = "configs/experiment/text_python.yaml"
MAJORITY = 0.25
"""Of four kinds, as many of each."""


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_the_kind_of_a_text_is_read_from_its_picture(tmp_path: Path) -> None:
    script = Path(sys.executable).parent / "effnet"
    done = subprocess.run(
        [script, "fit", "--config", TEXTS], cwd=tmp_path, capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = (tmp_path / "runs").iterdir()
    last = [row for row in rows(RunDirectory(path)) if row["val/ema_top1"]][-1]
    assert float(last["val/ema_top1"]) >= 0.8 > 3 * MAJORITY
