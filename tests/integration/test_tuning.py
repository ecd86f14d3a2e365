"""``effnet tune`` as a user gives it, on the toy shards."""

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from tests.integration.runs import TIMEOUT_S

Overrides = Callable[..., list[str]]
ROOT = Path(__file__).parents[2]


def start(*arguments: str, place: Path) -> "subprocess.Popen[str]":
    """In an empty folder, with one of its own for temporary files."""
    (place / "tmp").mkdir(parents=True)
    (place / "here").mkdir()
    return subprocess.Popen(
        [sys.executable, "-m", "launch.cli", "tune", *arguments],
        cwd=place / "here",
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place / "tmp"), "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def left(place: Path) -> list[str]:
    """Files in either folder."""
    return sorted(str(path.relative_to(place)) for path in place.glob("*/*"))


def test_a_learning_rate_is_found_and_only_its_picture_stays(toy_overrides: Overrides, tmp_path: Path) -> None:
    settings = toy_overrides(optimizer__opt="adamw", model__compound_phi=-9, loss__mixup_alpha=0, loss__cutmix_alpha=0)
    settings += ["data.augmentation.auto_augment=null", "data.image_size=32", "data.global_batch_size=32"]
    settings += ["data.micro_batch_size=32", "tracking.mode=offline"]
    command = start("lr", *settings, "--steps=60", "--min-lr=1e-5", "--out=found.png", place=tmp_path)
    output, said = command.communicate(timeout=TIMEOUT_S)

    assert (command.returncode, said) == (0, "")
    *shown, last = output.splitlines()
    report = json.loads(last)
    assert 1e-5 < report["suggested_lr"] < report["lowest_loss_lr"]
    assert 1e-2 < report["lowest_loss_lr"] < 10
    assert report["diverged"]
    assert report["override"] == f"optimizer.lr={report['suggested_lr']}" == shown[-1].strip()
    assert len(report["lrs"]) == len(report["losses"]) == len(report["smoothed_losses"])
    assert any(line.startswith("loss  ") and "▁" in line for line in shown)
    assert left(tmp_path) == ["here/found.png"]
    assert Image.open(tmp_path / "here/found.png").size == (770, 440)


def test_micro_batch_sizes_are_tried_and_nothing_stays(toy_overrides: Overrides, tmp_path: Path) -> None:
    settings = toy_overrides(data__global_batch_size=32, trainer__devices=2)  # one of which is tried
    command = start("batch-size", *settings, "--steps=1", "--min-size=4", "--quiet", place=tmp_path)
    output, said = command.communicate(timeout=TIMEOUT_S)

    assert command.returncode == 0, said
    assert said.splitlines() == [
        "not tried: data.micro_batch_size=1: an even number: Mixup and CutMix mix pairs",
    ]
    *shown, last = output.splitlines()
    report = json.loads(last)
    tried = [(trial["micro_batch_size"], trial["accumulate_grad_batches"]) for trial in report["trials"]]
    assert tried == [(4, 4), (8, 2), (16, 1)]
    fastest = max(report["trials"], key=lambda trial: trial["images_per_s"])
    assert report["suggested_micro_batch_size"] in (fastest["micro_batch_size"], 8)
    assert report["override"] == f"data.micro_batch_size={report['suggested_micro_batch_size']}"
    assert (report["largest_that_divides"], report["largest_that_fits"], report["device"]) == (16, None, "cpu")
    assert any("BatchNorm normalises each micro-batch by itself" in line for line in shown)
    assert left(tmp_path) == []


def test_ctrl_c_ends_it_and_leaves_nothing(toy_overrides: Overrides, tmp_path: Path) -> None:
    command = start("batch-size", *toy_overrides(), "--steps=100000", place=tmp_path)
    deadline = time.monotonic() + TIMEOUT_S
    while "micro-batches of" not in log_of(tmp_path):
        assert time.monotonic() < deadline, command.communicate()
        time.sleep(0.1)
    command.send_signal(signal.SIGINT)
    _, said = command.communicate(timeout=TIMEOUT_S)

    assert command.returncode == 1
    assert said.splitlines()[-1] == "error: stopped; nothing is left behind"
    assert left(tmp_path) == []


def log_of(place: Path) -> str:
    return "".join(path.read_text() for path in place.glob("tmp/*/logs/attempt-00/rank_*.log"))


def on_terminal(*arguments: str, place: Path) -> str:
    """What `effnet tune` shows on a terminal."""
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "launch.cli", "tune", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.Popen(command, cwd=place, env=environment, stdin=its, stdout=its, stderr=its)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # at the end
        while part := os.read(ours, 65536):
            shown += part
    os.close(ours)
    assert process.wait(TIMEOUT_S) == 0, shown.decode()
    return shown.decode()


def test_a_sweep_shows_how_far_it_is_and_a_quiet_one_its_result_alone(toy_overrides: Overrides, tmp_path: Path) -> None:
    words = ["lr", *toy_overrides(), "--steps=20"]
    loud, quiet = on_terminal(*words, place=tmp_path), on_terminal(*words, "--quiet", place=tmp_path)

    assert "learning rates" in loud
    assert "learning rates" not in quiet
    assert "\x1b[?25l" not in quiet  # no cursor is hidden for a bar
    for shown in (loud, quiet):
        assert json.loads(shown.splitlines()[-1])["losses"]
