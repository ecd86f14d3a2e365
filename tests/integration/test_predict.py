"""``effnet predict`` and ``export`` as a user calls them: on two processes, with a list on stdin, with a graph."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.conftest import picture
from tests.integration.runs import TIMEOUT_S
from tests.unit.trainer.runs import new_run
from tests.unit.trainer.runs import train as train_here


def effnet(*arguments: str, cwd: Path, stdin: str = "") -> str:
    """What it prints."""
    command = [Path(sys.executable).parent / "effnet", *arguments]
    done = subprocess.run(command, cwd=cwd, input=stdin, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_share_what_a_list_names(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    run = train_here(new_run(toy_overrides(trainer__max_steps=1, data__num_workers=1), tmp_path / "runs"))
    names = [f"{number:02}.png" for number in range(20)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(picture(number))
    (tmp_path / names[3]).write_bytes(b"no image")
    exported = effnet("export", str(run.path), "--format", "torchscript", "--out-dir", "out", cwd=tmp_path)
    assert "TorchScript: out/model.torchscript.pt: largest difference" in exported
    assert {path.name for path in (tmp_path / "out").iterdir()} >= {"model.torchscript.pt", "README.md", "config.json"}

    outs = []
    for devices in ("1", "2"):
        out = tmp_path / f"{devices}.jsonl"
        command = ["predict", str(run.path), "-", "--devices", devices, "--out", str(out), "--batch-size", "4"]
        printed = effnet(*command, cwd=tmp_path, stdin="\n".join(names))
        assert "03.png is skipped: not a readable image" in printed
        assert "19 images, 1 bad" in printed
        outs.append([json.loads(line) for line in out.read_text().splitlines()])

    assert [line["image"] for line in outs[0]] == names
    for one, two in zip(*outs, strict=True):
        assert one["image"] == two["image"]
        assert [each["label"] for each in one.get("predictions", ())] == [
            each["label"] for each in two.get("predictions", ())
        ]
