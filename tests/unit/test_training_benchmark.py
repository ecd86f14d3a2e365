"""What the benchmark of the training loop counts, and what it refuses; its figures are for a machine of its own."""

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from benchmarks.limits import work


def test_a_timm_train_that_is_no_file_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks.train", "--quick", "--timm-train", str(tmp_path / "train.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)

    assert done.returncode == 2
    assert f"{tmp_path}/train.py is no file; accepted: train.py of a checkout of timm" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_operations_of_a_step_are_those_of_the_published_network() -> None:
    counted = work(timm.create_model("efficientnet_b0"), batch=2, size=224, dtype=torch.bfloat16)

    # 0.39 billion multiply-adds an image (Tan and Le, ICML 2019, table 2), and twice that backwards.
    assert counted.flops == pytest.approx(3 * 2 * 2 * 0.39e9, rel=0.05)
    assert counted.bytes > 2 * 100e6
