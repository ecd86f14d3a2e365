import io
import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from configs.run import QUIET, RunDirectory
from datamodules import bars
from tests.unit.launch.commands import effnet
from tests.unit.trainer.runs import ALONE, as_killed_after, new_run, rows, train
from trainer import progress
from trainer.evaluation.command import Request, validate

Overrides = Callable[..., list[str]]


def screen(run: RunDirectory, *, attempt: int = 0, terminal: bool = True) -> str:
    """All that was shown while training, without colours."""
    output = io.StringIO()
    train(run, attempt=attempt, console=Console(file=output, force_terminal=terminal, width=150))
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue())


def test_a_terminal_shows_epoch_steps_loss_accuracy_speed_and_time_left(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(trainer__max_epochs=2), tmp_path)
    shown = screen(run)

    last = {row["step"]: row for row in rows(run) if row["train/loss"]}["17"]
    numbers = rf"loss {float(last['train/loss']):.3f}  top-1 {float(last['train/top1']):.3f}  [\d,]+ images/s"
    numbers += r"  data wait [\d.]+%"
    assert re.search(rf"epoch 2/2 .* 17/17 +{numbers} +0:00:\d\d +left +0:00:00", shown), shown[-2000:]
    assert re.search(r"epoch 1/2 .* \d/17 ", shown)
    assert "raw weights" in shown


def test_the_bar_of_a_resumed_run_begins_where_it_goes_on(trained: RunDirectory, tmp_path: Path) -> None:
    shown = screen(as_killed_after(trained, tmp_path, step=12), attempt=1)

    bars = re.findall(r"epoch (\S+) .*? (\d+)/17 ", shown)
    assert bars[0] == ("2/2", "12")
    assert bars[-1] == ("2/2", "17")


def test_a_run_with_fewer_steps_counts_to_them(toy_overrides: Overrides, tmp_path: Path) -> None:
    assert re.search(r"epoch 1/3 .* 2/2 ", screen(new_run(toy_overrides(trainer__max_steps=2), tmp_path)))


def test_elsewhere_there_is_no_bar_but_a_line_an_epoch(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run(toy_overrides(trainer__max_epochs=2, trainer__log_every_n_steps=3), tmp_path)
    with caplog.at_level(logging.INFO, logger="effnet"):
        shown = screen(run, terminal=False)

    assert "images/s" not in shown
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("epoch")]
    validation = [row for row in rows(run) if row["val/loss"]]
    assert len(lines) == len(validation) == 2
    for number, (line, row) in enumerate(zip(lines, validation, strict=True), start=1):
        assert line.startswith(f"epoch {number}/2 · step {row['step']} · loss ")
        assert " images/s · " in line
        assert re.search(r" · data wait [\d.]+% · ", line)
        assert f"val/top1 {float(row['val/top1']):.4f} · val/ema_top1 {float(row['val/ema_top1']):.4f}" in line


def test_elsewhere_a_long_epoch_has_a_line_now_and_then(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
    run = new_run(toy_overrides(trainer__max_steps=2), tmp_path)
    with caplog.at_level(logging.INFO, logger="effnet"):
        screen(run, terminal=False)

    lines = [record.getMessage() for record in caplog.records if " of 2 · " in record.getMessage()]
    loss = float(rows(run)[1]["train/loss"])
    assert any(line.startswith(f"epoch 1/3 · step 2 of 2 · loss {loss:.3f} · top-1 ") for line in lines), lines


def test_indexing_at_the_start_has_a_line_now_and_then(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    changes = {"trainer__max_steps": 1, "data__index_dir": tmp_path / "indexes"}
    with caplog.at_level(logging.INFO, logger="effnet"):
        screen(new_run(toy_overrides(**changes), tmp_path), terminal=False)

    lines = [each.getMessage() for each in caplog.records if each.getMessage().startswith("indexing shards: ")]
    assert lines[-1].startswith("indexing shards: 7, ")


@pytest.mark.parametrize("terminal", [True, False])
def test_validating_shows_how_far_it_is(
    terminal: bool, trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bars, "LINE_EVERY_S", 0.0)
    output = io.StringIO()
    shown = Console(file=output, force_terminal=terminal, width=150)
    request = Request(run=trained.path, out=tmp_path)
    validate(request, processes=ALONE, console=Console(file=io.StringIO()), progress=shown)

    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", output.getvalue())
    assert re.search("validate .* 37/37" if terminal else "^validate: 8 of 37 ", text)
    if not terminal:
        assert re.search("^validate: 37 of 37 ", text, flags=re.MULTILINE)


def test_quiet_leaves_results_alone(toy_overrides: Overrides, tmp_path: Path) -> None:
    settings = [*toy_overrides(trainer__max_epochs=1), f"runs_dir={tmp_path}"]
    loud = effnet("fit", *settings, "run_id=loud", cwd=tmp_path)
    quiet = effnet("fit", "--quiet", *settings, "run_id=quiet", cwd=tmp_path)
    job = effnet("fit", *settings, "run_id=job", cwd=tmp_path, **{QUIET: "1"})  # as a scheduler's job is told

    assert (loud.returncode, quiet.returncode, job.returncode) == (0, 0, 0), loud.stderr + quiet.stderr + job.stderr
    assert "epoch 1/1" in loud.stdout
    assert "epoch 1/1" not in quiet.stdout + job.stdout
    assert "raw weights" in quiet.stdout
    assert "raw weights" in job.stdout
