import base64
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.files import read_json
from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from tests.disks import fill, small_disk
from tests.unit.trainer.runs import as_killed_after, new_run, rows, train
from trainer.tracking import FINISH_TIMEOUT_S, MetricsCsv, SafeWandbLogger, build_loggers

Overrides = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.path.mkdir()
    return directory


def log(run: RunDirectory, steps: range, *, resumed_step: int, **values: float) -> None:
    """One attempt's rows."""
    logger = MetricsCsv(run, resumed_step=resumed_step)
    for step in steps:
        logger.log_metrics({"train/loss": step / 10, **values}, step=step)
    logger.finalize("success")


def column(run: RunDirectory, name: str) -> list[str]:
    return [row[name] for row in rows(run)]


# metrics.csv


def test_rows_are_on_disk_as_soon_as_they_are_logged(run: RunDirectory) -> None:
    logger = MetricsCsv(run, resumed_step=0)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 0.5}, step=step)
        assert column(run, "step")[-1] == str(step)


def test_metrics_go_on_after_a_resume_and_no_step_comes_twice(run: RunDirectory) -> None:
    log(run, range(1, 8), resumed_step=0, attempt=0)
    log(run, range(6, 10), resumed_step=5, attempt=1)  # the checkpoint was of step 5

    assert column(run, "step") == [str(step) for step in range(1, 10)]
    assert column(run, "attempt") == ["0"] * 5 + ["1"] * 4
    assert column(run, "train/loss") == [str(step / 10) for step in range(1, 10)]


def test_all_rows_of_the_resumed_step_are_kept(run: RunDirectory) -> None:
    log(run, range(1, 6), resumed_step=0)
    log(run, range(5, 6), resumed_step=4, **{"val/top1": 0.5})
    log(run, range(6, 7), resumed_step=5)

    assert column(run, "step") == ["1", "2", "3", "4", "5", "6"]
    assert column(run, "val/top1") == ["", "", "", "", "0.5", ""]


def test_a_run_that_begins_anew_begins_its_metrics_anew(run: RunDirectory) -> None:
    log(run, range(1, 4), resumed_step=0)
    log(run, range(1, 3), resumed_step=0)

    assert column(run, "step") == ["1", "2"]


def test_columns_may_come_later_and_after_a_resume(run: RunDirectory) -> None:
    logger = MetricsCsv(run, resumed_step=0)
    logger.log_metrics({"train/loss": 1.0}, step=1)
    logger.log_metrics({"val/top1": 0.25}, step=1)
    logger.log_metrics({"train/loss": 0.5}, step=2)
    log(run, range(3, 4), resumed_step=2, **{"val/ema_top1": 0.75})

    assert rows(run) == [
        {"step": "1", "train/loss": "1.0", "val/ema_top1": "", "val/top1": ""},
        {"step": "1", "train/loss": "", "val/ema_top1": "", "val/top1": "0.25"},
        {"step": "2", "train/loss": "0.5", "val/ema_top1": "", "val/top1": ""},
        {"step": "3", "train/loss": "0.3", "val/ema_top1": "0.75", "val/top1": ""},
    ]


@pytest.mark.parametrize("cut", [1, 3, 8])
def test_a_row_that_was_cut_off_does_not_stop_a_resume(cut: int, run: RunDirectory) -> None:
    log(run, range(1, 6), resumed_step=0, attempt=0)
    content = run.metrics_file.read_bytes()
    run.metrics_file.write_bytes(content[:-cut])

    log(run, range(5, 7), resumed_step=4, attempt=1)
    assert column(run, "step") == ["1", "2", "3", "4", "5", "6"]
    assert column(run, "train/loss") == ["0.1", "0.2", "0.3", "0.4", "0.5", "0.6"]


@pytest.mark.parametrize("content", [b"", b"step", b"step,train/loss\r\n", b"\0\0\0\0"])
def test_a_file_without_rows_does_not_stop_a_resume(content: bytes, run: RunDirectory) -> None:
    run.metrics_file.write_bytes(content)

    log(run, range(5, 6), resumed_step=4)
    assert column(run, "step") == ["5"]


def test_a_process_that_ends_while_a_column_is_added_loses_no_row(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    log(run, range(1, 4), resumed_step=0)

    def killed(*_: object) -> None:
        raise SystemExit

    monkeypatch.setattr(csv.DictWriter, "writerows", killed)
    with pytest.raises(SystemExit):
        log(run, range(4, 5), resumed_step=3, **{"val/top1": 0.5})
    monkeypatch.undo()
    assert column(run, "step") == ["1", "2", "3"]


def test_rows_wait_for_room_on_a_full_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with small_disk(tmp_path / "run", size_bytes=1_000_000) as place:
        run = RunDirectory(place)
        logger = MetricsCsv(run, resumed_step=0)
        logger.log_metrics({"train/loss": 0.0}, step=0)
        filler = fill(place)
        for step in range(1, 900):  # more than is left in the last block
            logger.log_metrics({"train/loss": step / 10}, step=step)
        logger.log_metrics({"val/top1": 0.5}, step=900)  # another column
        assert len(rows(run)) < 900
        filler.unlink()
        logger.log_metrics({"train/loss": 90.1}, step=901)

        assert column(run, "step") == [str(step) for step in range(902)]
        assert column(run, "val/top1")[900] == "0.5"
    assert caplog.text.count("cannot be written, its rows are kept") == 1


def test_a_killed_run_has_each_step_once_after_it_went_on(trained: RunDirectory, tmp_path: Path) -> None:
    resumed = train(as_killed_after(trained, tmp_path, step=11), attempt=1)

    values = ("step", "train/loss", "train/top1", "lr", "val/loss", "val/ema_top1", "epoch", "samples_seen")
    assert [[row[name] for name in values] for row in rows(resumed)] == [
        [row[name] for name in values] for row in rows(trained)
    ]
    assert column(resumed, "attempt") == ["0"] * 12 + ["1"] * 7  # with a row for each of two validations


# TensorBoard


def events_of(run: RunDirectory) -> EventAccumulator:
    """What TensorBoard shows."""
    events = EventAccumulator(str(run.path / "tensorboard"))
    events.Reload()
    return events


def scalars(run: RunDirectory, name: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in events_of(run).Scalars(name)]


def test_tensorboard_has_the_rows_of_all_attempts_without_those_that_came_again(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(tracking__tensorboard="true"), tmp_path)
    for attempt, steps in enumerate([range(1, 8), range(6, 10)]):
        loggers = build_loggers(run.load_config(), run, resumed_step=steps[0] - 1)
        for logger in loggers:
            for step in steps:
                logger.log_metrics({"train/loss": step + attempt / 2}, step=step)
            logger.finalize("success")

    found = scalars(run, "train/loss")
    assert found == [(step, float(step)) for step in range(1, 6)] + [(step, step + 0.5) for step in range(6, 10)]
    assert found == [(int(row["step"]), float(row["train/loss"])) for row in rows(run)]


def test_a_disk_without_room_for_tensorboard_is_said_once(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = new_run(toy_overrides(tracking__tensorboard="true"), tmp_path)
    with small_disk(run.path / "tensorboard", size_bytes=200_000) as place:
        _, logger = build_loggers(run.load_config(), run, resumed_step=0)
        logger.log_metrics({"train/loss": 1.0}, step=1)
        fill(place)
        for step in range(2, 200):
            logger.log_metrics({f"value/{number}": float(step) for number in range(100)}, step=step)
            if step % 10 == 0:
                logger.save()
        logger.finalize("success")
    assert caplog.text.count("TensorBoard failed and is off for this attempt") == 1


def test_tensorboard_that_is_not_installed_is_asked_for(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(toy_overrides(tracking__tensorboard="true"), tmp_path)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(ConfigError, match=r"effnet\[tensorboard\]"):
        build_loggers(run.load_config(), run, resumed_step=0)


# Weights & Biases


def environment() -> dict[str, str]:
    """This process's, without what W&B has put into it."""
    return {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}


def inspect(directory: Path) -> list[dict[str, Any]]:
    """What W&B's own tool reads of an offline run, a record a line."""
    wandb = shutil.which("wandb", path=str(Path(sys.executable).parent))
    assert wandb is not None
    done = subprocess.run(
        [wandb, "leet", "inspect", "--json", str(directory)], capture_output=True, text=True, check=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_an_offline_run_keeps_every_row_with_its_axes(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it for good
    overrides = toy_overrides(trainer__max_epochs=1, tracking__mode="offline", tracking__project="toys")
    overrides += ["tracking.group=seeds", "tracking.notes=the third of five", "tracking.tags=[toy]"]
    run = train(new_run(overrides, tmp_path), attempt=3)

    (directory,) = run.wandb_dir.glob("offline-run-*")
    records = inspect(directory)
    (about,) = (record["run"] for record in records if record["type"] == "run")
    assert (about["run_id"], about["display_name"], about["project"]) == (run.wandb_id(), "toy", "toys")
    assert (about["run_group"], about["notes"], about["tags"]) == ("seeds", "the third of five", ["toy"])
    assert not run.wandb_url_file.exists()
    axes = [record["metric"] for record in records if record["type"] == "metric"]
    assert any(axis.get("glob_name") == "*" and axis["step_metric"] == "trainer/global_step" for axis in axes)
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    written = rows(run)
    assert len(logged) == len(written) == 10
    for row, item in zip(written, logged, strict=True):
        assert item["trainer/global_step"] == int(row["step"])
        assert (item["attempt"], item["samples_seen"]) == (3, int(row["samples_seen"]))
        for name in set(row) - {"step"}:
            assert (item.get(name) == pytest.approx(float(row[name]))) if row[name] else name not in item
    configs = [record["config"]["update"] for record in records if record["type"] == "config"]
    assert any(update.get("data", {}).get("global_batch_size") == 16 for update in configs)


def test_the_end_of_an_offline_run_has_classes_plots_and_predictions_with_their_pictures(
    trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")  # Lightning sets it for good
    run = as_killed_after(trained, tmp_path, step=15)
    settings = ["tracking.mode=offline", "tracking.tensorboard=true"]
    run.freeze(load_config([str(run.config_file)], settings).config)
    train(run, attempt=1)

    (directory,) = run.wandb_dir.glob("offline-run-*")
    records = inspect(directory)
    logged = [record["history"]["item"] for record in records if record["type"] == "history"]
    final = {name.removesuffix(".path"): item for item in logged for name in item if name.endswith(".path")}
    plots = ["confusion", "classes", "reliability"]
    assert sorted(final) == sorted(f"final/{name}" for name in ("per_class", "worst", "best", *plots))
    assert {item["trainer/global_step"] for item in final.values()} == {17}
    found = read_json(run.path / "validation.json")["results"][-1]

    def page(name: str) -> str:
        return (directory / "files" / final[name][f"{name}.path"]).read_text()

    for kind in ("worst", "best"):
        shown = re.findall("<tr><td>(.*?)</td></tr>", page(f"final/{kind}"))
        assert len(shown) == 3
        for cells, expected in zip((row.split("</td><td>") for row in shown), found[kind], strict=True):
            contents = base64.b64decode(re.findall('base64,([^"]*)', cells[0])[0])
            assert contents == (run.path / expected["picture"]).read_bytes()
            assert cells[1:3] == [str(expected["label"]), str(expected["predicted"])]
            assert cells[3] == f"{expected['confidence']:.2%}"
            assert cells[6:] == [expected["key"], expected["shard"]]
    per_class = re.findall(r"<tr><td>(\d)</td><td>(\d+)</td><td>([\d.]+)%", page("final/per_class"))
    assert sorted((int(label), int(samples)) for label, samples, _ in per_class) == list(
        enumerate(found["per_class"]["samples"])
    )
    top1 = [float(share) / 100 for *_, share in per_class]
    assert top1 == pytest.approx(sorted(found["per_class"]["top1"]), abs=1e-4)
    for name in plots:
        with Image.open(run.path / f"validation/{name}-64-0.875.png") as ours:
            path = final[f"final/{name}"][f"final/{name}.path"]
            with Image.open(directory / "files" / path) as theirs:
                assert list(ours.getdata()) == list(theirs.getdata())
            shown_by_tensorboard = events_of(run).Images(f"final/{name}")
            assert [(each.step, each.width, each.height) for each in shown_by_tensorboard] == [(17, *ours.size)]
    updates = [record["summary"]["update"] for record in records if record["type"] == "summary"]
    summary = {name: value for update in updates for name, value in update.items()}
    assert float(summary["final/ema_balanced_top1"]) == pytest.approx(found["balanced_top1"])


def test_attempts_of_a_run_share_one_id(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = new_run(toy_overrides(tracking__mode="offline"), tmp_path)

    loggers = [build_loggers(run.load_config(), run, resumed_step=step)[1] for step in (0, 5)]
    assert [logger.version for logger in loggers] == [run.wandb_id()] * 2


def test_the_end_of_a_run_does_not_wait_for_ever_for_a_server_that_is_away(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(tracking__mode="online"), tmp_path)

    logger = build_loggers(run.load_config(), run, resumed_step=0)[1]
    assert isinstance(logger, SafeWandbLogger)
    assert logger._wandb_init["settings"].finish_timeout == FINISH_TIMEOUT_S
    assert logger._wandb_init["resume"] == "allow"


def test_disabled_tracking_keeps_metrics_csv_alone(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = new_run(toy_overrides(tracking__mode="disabled"), tmp_path)

    (logger,) = build_loggers(run.load_config(), run, resumed_step=0)
    assert isinstance(logger, MetricsCsv)


SERVICE_KILLED = """
import os, sys, time
import psutil
from trainer.logs import logger
from trainer.tracking import SafeWandbLogger

tracker = SafeWandbLogger(id="abc", project="toys", save_dir=sys.argv[1], offline=True)
step = 0
for _ in range(int(sys.argv[2])):
    for _ in range(20):
        step += 1
        tracker.log_metrics({"train/loss": step / 10}, step=step)
    assert not tracker.dead
    (service,) = (p for p in psutil.Process().children(recursive=True) if "core" in p.name())
    service.kill()
    service.wait()
    tracker.log_hyperparams({"lr": 1})
    if tracker._beginner is not None:
        tracker._beginner.join()
for step in range(step + 1, step + 20):
    tracker.log_metrics({"train/loss": step / 10}, step=step)
tracker.finish(0)
print("dead" if tracker.dead else "alive", step, flush=True)
os._exit(0)
"""


def test_wandb_is_begun_again_after_its_process_was_killed_and_no_row_is_lost(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVICE_KILLED, str(tmp_path), "2"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)

    assert done.stdout.splitlines()[-1:] == ["alive 59"], done.stderr
    assert done.stderr.count("W&B's process has ended: it is begun again in the same run") == 1
    assert done.stderr.count("W&B failed") == 0
    parts = sorted((tmp_path / "wandb").glob("offline-run-*-abc"))
    assert len(parts) == 3
    found = [record["history"]["item"] for part in parts for record in inspect(part) if record["type"] == "history"]
    assert {item["trainer/global_step"]: item["train/loss"] for item in found} == pytest.approx(
        {step: step / 10 for step in range(1, 60)}
    )


@pytest.mark.slow
def test_wandb_whose_process_is_killed_again_and_again_is_off_and_that_is_said_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SERVICE_KILLED, str(tmp_path), "4"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120, check=False)

    assert done.stdout.splitlines()[-1:] == ["dead 99"], done.stderr
    assert done.stderr.count("W&B's process has ended: it is begun again in the same run") == 1
    assert done.stderr.count("W&B failed and is off for this attempt") == 1


@pytest.mark.parametrize("mode", ["no key", pytest.param("server away", marks=pytest.mark.slow)])
def test_a_run_trains_to_its_end_without_wandb(
    mode: str,
    toy_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = new_run(toy_overrides(trainer__max_steps=2, tracking__mode="online"), tmp_path)
    log_dir = run.log_dir(0)
    log_dir.mkdir(parents=True)
    variables = environment() | {"WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}  # the port of nobody
    if mode == "server away":
        variables |= {"WANDB_API_KEY": "a" * 40}
    command = [sys.executable, "-m", "trainer", "fit", str(run.path), f"--log-dir={log_dir}", "--attempt=0"]
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=200, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("W&B cannot be reached: this attempt is kept on disk") == 1
    assert done.stdout.count("W&B failed") == 0
    assert [row["step"] for row in rows(run)] == ["1", "2", "2"]
    (kept,) = run.wandb_dir.glob("offline-run-*")
    history = [record["history"]["item"] for record in inspect(kept) if record["type"] == "history"]
    assert [item["trainer/global_step"] for item in history] == [1, 2, 2]
    assert (run.path / "curves.png").exists()
