"""Runs whose W&B is a server on loopback: one that answers, and ones that do not."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import psutil
import pytest
from rich.console import Console

from configs.files import read_json
from configs.load import load_config
from configs.problems import DataError
from configs.run import GRACE, RunDirectory
from launch.inspection import show_status
from tests.disks import small_disk
from tests.unit.trainer.runs import new_run, rows, sync, train
from tests.wandb_server import ENTITY, KEY, Run, WandbServer
from trainer.tracking import SafeWandbLogger, build_loggers, sync_command

Overrides = Callable[..., list[str]]
ONLINE = {"tracking__mode": "online", "tracking__project": "toys"}


def counting(run: Run) -> dict[int, dict[str, Any]]:
    """Of the rows of training of each step, that of the latest attempt."""
    found: dict[int, dict[str, Any]] = {}
    for row in run.history:
        if "train/loss" in row and row["attempt"] >= found.get(row["trainer/global_step"], row)["attempt"]:
            found[row["trainer/global_step"]] = row
    return found


def losses(run: RunDirectory) -> dict[int, float]:
    return {int(row["step"]): float(row["train/loss"]) for row in rows(run) if row.get("train/loss")}


def assert_alike(online: Run, run: RunDirectory) -> None:
    """What counts of the rows in W&B is what metrics.csv has, and W&B's own axis never goes back."""
    found = counting(online)
    assert {step: row["train/loss"] for step, row in found.items()} == pytest.approx(losses(run))
    steps = [row["_step"] for row in online.history]
    assert steps == sorted(set(steps))


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not what():
        assert time.monotonic() < until
        time.sleep(0.02)


def kill_after(step: int, run: RunDirectory, server: WandbServer, launcher: subprocess.Popen[str]) -> int:
    """Hold the rank after a step, and kill it with signal 9 when W&B has its rows; returns the last one's step."""

    def reached() -> bool:
        return launcher.poll() is not None or (run.metrics_file.exists() and max(losses(run), default=0) >= step)

    wait_for(reached)
    (rank,) = (
        each for each in psutil.Process(launcher.pid).children(recursive=True) if "--attempt=0" in each.cmdline()
    )
    rank.send_signal(signal.SIGSTOP)
    last = max(losses(run))
    wait_for(lambda: last in counting(server.runs[run.wandb_id()]))
    rank.send_signal(signal.SIGKILL)
    return last


def test_a_run_whose_rank_is_killed_is_one_run_that_says_what_happened(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    settings = {**ONLINE, "checkpoint__every_n_steps": 4, "trainer__max_steps": 25, "fault__restart_backoff_s": 0.1}
    overrides = [*toy_overrides(**settings, tracking__examples=3), f"runs_dir={tmp_path}", "run_id=toy"]
    run = RunDirectory(tmp_path / "toy")
    command = [sys.executable, "-m", "launch.cli", "fit", "--max-restarts", "1", *overrides]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    last = kill_after(6, run, server, launcher)
    output, _ = launcher.communicate(timeout=240)

    assert launcher.returncode == 0, output
    (online,) = server.runs.values()
    assert (online.name, online.sessions) == (run.wandb_id(), 2)
    page_of_run = f"{server.url}/{ENTITY}/toys/runs/{online.name}"
    assert output.count(f"W&B: {page_of_run}\n") == 2
    shown = io.StringIO()
    show_status(run, Console(file=shown, width=200))
    assert page_of_run in shown.getvalue()
    steps = [(row["attempt"], row["trainer/global_step"]) for row in online.history if "train/loss" in row]
    resumed = min(step for attempt, step in steps if attempt == 1)
    assert resumed <= last + 1
    assert steps == [(0, step) for step in range(1, last + 1)] + [(1, step) for step in range(resumed, 26)]
    assert_alike(online, run)

    assert online.summary["events/failures"] == 1
    (page,) = [row["events/attempts"] for row in online.history if "events/attempts" in row]
    shown = online.files[page["path"]].decode()
    assert "<td>failed</td>" in shown
    assert "signal 9" in shown or "SIGKILL" in shown
    assert [title for title, _ in online.alerts] == ["started again after a failure"]

    final = {name: row[name] for row in online.history for name in row if name.startswith("final/")}
    assert online.files[final["final/worst"]["path"]].count(b"<img") == 3
    assert online.files[final["final/per_class"]["path"]].count(b"<tr>") == 1 + 4
    plot = (run.path / "validation" / "confusion-64-0.875.png").read_bytes()
    assert online.files[final["final/confusion"]["path"]].startswith(plot[:8])
    assert online.summary["final/top1"] == read_json(run.path / "validation.json")["val/top1"]

    facts, origins = online.config["run"]["value"], online.config["origins"]["value"]
    assert origins["optimizer.lr"] == "command line"
    assert "optimizer.momentum" not in origins
    assert online.config["optimizer"]["value"]["lr"] == 0.02
    environment = json.loads(run.environment_file.read_text())[-1]
    assert facts["git_sha"] == environment["git_sha"]
    assert facts["packages"]["timm"]
    assert len(facts["train_index_hash"]) >= 32
    assert server.unknown == []

    key = KEY.encode()
    assert not [file for file in run.path.rglob("*") if file.is_file() and key in file.read_bytes()]


def test_going_back_to_an_older_checkpoint_supersedes_rows_and_takes_no_axis_back(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    overrides = toy_overrides(**ONLINE, trainer__max_steps=6, checkpoint__every_n_steps=2, checkpoint__keep_last=9)
    run = train(new_run(overrides, tmp_path))
    place = [f"runs_dir={tmp_path}", "run_id=toy", f"resume={run.checkpoints}/step-000000002"]
    run.freeze(load_config([], [*overrides, *place]).config)
    train(run, attempt=1)

    (online,) = server.runs.values()
    assert online.sessions == 2
    assert [row["trainer/global_step"] for row in online.history if "train/loss" in row] == [*range(1, 7), *range(3, 7)]
    assert_alike(online, run)
    assert (online.exit_code, server.unknown) == (0, [])


def test_a_run_that_diverges_for_good_tells_whoever_wants_to_be_told(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    settings = {"optimizer__lr": 1e30, "scheduler__warmup_epochs": 0, "fault__max_skipped_steps": 0}
    run = new_run(toy_overrides(**ONLINE | settings, fault__max_rollbacks=0), tmp_path)
    with pytest.raises(DataError) as error:
        train(run)

    (online,) = server.runs.values()
    (first, what), (second, why) = online.alerts
    assert (first, second) == ("loss or gradient not finite", "training failed")
    assert "toy: step 2: the loss is" in what
    assert "toy, attempt 0, after step" in why
    assert str(error.value) in why
    assert online.exit_code == 1


@pytest.mark.parametrize(
    "fault", [401, pytest.param(503, marks=pytest.mark.slow), pytest.param("hang", marks=pytest.mark.slow)]
)
def test_a_server_that_fails_costs_no_row_and_the_user_is_told_once_how_to_send_them(
    fault: int | Literal["hang"],
    server: WandbServer,
    toy_overrides: Overrides,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server.fault = fault
    run = train(new_run(toy_overrides(**ONLINE, trainer__max_steps=3), tmp_path))

    assert list(losses(run)) == [1, 2, 3]
    assert caplog.text.count("W&B") == 1
    assert f"kept on disk, and to be sent by: {sync_command(run)}" in caplog.text
    server.fault = None
    sync(run, server)
    assert_alike(server.runs[run.wandb_id()], run)


def test_attempts_that_were_kept_on_disk_are_sent_by_one_command_and_once(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(tracking__mode="offline", tracking__project="toys"), tmp_path)
    for attempt, steps in enumerate([range(1, 6), range(4, 8)]):
        for logger in build_loggers(run.load_config(), run, resumed_step=steps[0] - 1):
            for step in steps:
                values = {"train/loss": step + attempt / 10, "attempt": attempt}
                logger.log_metrics(values, step=step)
            if isinstance(logger, SafeWandbLogger):
                logger.finish(0)
        time.sleep(1.1)  # W&B names attempts by the second
    assert server.runs == {}
    for _ in range(2):
        sync(run, server)
        (online,) = server.runs.values()
        assert [row["trainer/global_step"] for row in online.history] == [*range(1, 6), *range(4, 8)]
        assert_alike(online, run)


def test_a_server_that_hangs_in_mid_run_holds_up_no_row_and_an_end_no_longer_than_it_may(
    server: WandbServer,
    toy_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trainer.tracking.FINISH_TIMEOUT_S", 2.0)
    run = new_run(toy_overrides(**ONLINE), tmp_path)
    _, logger = build_loggers(run.load_config(), run, resumed_step=0)
    assert isinstance(logger, SafeWandbLogger)
    for step in range(1, 300):
        if step == 3:
            server.fault = "hang"
        logger.log_metrics({"train/loss": step / 10, "attempt": 0}, step=step)
    logger.finish(0)

    assert not logger.dead
    assert caplog.text.count("W&B has not taken all rows") == 1
    assert sync_command(run) in caplog.text
    server.fault = None
    sync(run, server)
    (online,) = server.runs.values()
    assert [row["trainer/global_step"] for row in online.history] == list(range(1, 300))


def test_a_server_that_hangs_holds_up_a_stop_no_longer_than_the_scheduler_waits(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    """W&B itself would wait 60 s, and by then a job whose grace is 12 s would have been killed, and not be put back."""
    settings = {"tracking__checkpoint_artifacts": "all", "checkpoint__every_n_steps": 2, "trainer__max_epochs": 60}
    run = new_run(toy_overrides(**ONLINE, **settings), tmp_path)
    log_dir = run.log_dir(0)
    log_dir.mkdir(parents=True)
    command = [sys.executable, "-m", "trainer", "fit", str(run.path), f"--log-dir={log_dir}", "--attempt=0"]
    process = subprocess.Popen(command, env={**server.environment(), GRACE: "12"}, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or (run.metrics_file.exists() and bool(losses(run))))
    server.fault = "hang"
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=200)

    assert process.returncode == 85, said
    (waited,) = map(int, re.findall(r"W&B has not taken all rows in (\d+) s: they are on disk", said))
    assert waited <= 7
    assert sync_command(run) in said
    server.fault = None
    sync(run, server)
    found = counting(server.runs[run.wandb_id()])
    assert {step: row["train/loss"] for step, row in found.items()} == pytest.approx(losses(run))


@pytest.mark.parametrize("away", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_wandbs_process_that_is_killed_in_a_run_is_begun_again_in_the_same_run(
    away: bool,
    server: WandbServer,
    toy_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trainer.tracking.INIT_TIMEOUT_S", 2.0)
    run = new_run(toy_overrides(**ONLINE, trainer__max_steps=12), tmp_path)

    def kill() -> None:
        wait_for(lambda: run.metrics_file.exists() and max(losses(run), default=0) >= 4)
        server.fault = 503 if away else None
        (service,) = (each for each in psutil.Process().children(recursive=True) if "core" in each.name())
        service.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    train(run)
    killer.join()

    assert list(losses(run)) == list(range(1, 13))
    assert caplog.text.count("W&B") == 1
    if away:
        assert f"kept on disk, and to be sent by: {sync_command(run)}" in caplog.text
    else:
        assert "W&B's process has ended: it is begun again in the same run" in caplog.text
        steps = [row["trainer/global_step"] for row in server.runs[run.wandb_id()].history if "train/loss" in row]
        assert steps == list(range(1, 13))
    server.fault = None
    sync(run, server)
    (online,) = server.runs.values()
    assert_alike(online, run)


FULL_DISK = """
import contextlib, os, sys, time
from pathlib import Path
from configs.run import RunDirectory
from trainer.wandb_logger import SafeWandbLogger, sync_command

run, room = RunDirectory(Path(sys.argv[1])), sys.argv[2] == "room"
tracker = SafeWandbLogger(sync=sync_command(run), id="abc", project="toys", save_dir=str(run.path), offline=True)
filler = run.path / "filler"
for step in range(1, 400):
    tracker.log_metrics({f"value/{number}": step / 7 for number in range(20)}, step=step)
    if step == 100:
        # In the second in which W&B writes what came before.
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(4096))
    if step == 300 and room:
        time.sleep(2.0)
        filler.unlink()
tracker.finish(0)
print("went on", flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("ends", ["room", "no room"])
def test_rows_of_a_run_that_is_kept_on_disk_wait_for_room_on_a_full_one(
    ends: str, server: WandbServer, tmp_path: Path
) -> None:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    with small_disk(tmp_path / "run", size_bytes=4_000_000) as place:
        command = [sys.executable, "-c", FULL_DISK, str(place), ends]
        done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=120, check=False)
        assert done.stdout.splitlines()[-1:] == ["went on"], done.stderr
        assert done.stderr.count("the disk is full: rows of W&B wait for room") == 1
        if ends == "no room":
            assert "the disk has had no room for 299 rows of W&B, of steps 101 to 399" in done.stderr
            return
        assert "no room" not in done.stderr
        torn, _ = sorted((place / "wandb").glob("offline-run-*/*.wandb"))
        os.truncate(torn, 98_000)  # as a full disk leaves it, if W&B writes just then
        sync(RunDirectory(place), server)
    (online,) = server.runs.values()
    rows = {row["trainer/global_step"]: row["value/0"] for row in online.history}
    assert rows == pytest.approx({step: step / 7 for step in range(1, 400)})


def test_a_run_that_is_stopped_on_its_page_checkpoints_and_its_job_does_not_come_again(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = new_run(toy_overrides(**ONLINE, trainer__max_epochs=60), tmp_path)
    run.launch_dir.mkdir()
    log_dir = run.log_dir(0)
    log_dir.mkdir(parents=True)
    # W&B's client sends rows, and asks, every 15 s.
    program = (
        "import sys, runpy\n"
        "from wandb.sdk.lib.run_stopping import RunStopChecker\n"
        "RunStopChecker.__init__.__kwdefaults__['poll_interval'] = 0.5\n"
        "runpy.run_module('trainer', run_name='__main__')\n"
    )
    command = [sys.executable, "-c", program, "fit", str(run.path), f"--log-dir={log_dir}", "--attempt=0"]
    environment = server.environment() | {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    wait_for(lambda: process.poll() is not None or (run.metrics_file.exists() and bool(losses(run))))
    server.runs[run.wandb_id()].stopped = True
    said, _ = process.communicate(timeout=200)

    assert process.returncode == 85, said
    assert "stopped on W&B's page" in said
    assert list(run.checkpoints.glob("step-*"))
    assert launched_again(run) == "end\n"
    run.cancelled_file.unlink()
    assert launched_again(run) == "requeue\n"


def launched_again(run: RunDirectory) -> str:
    """What a job of Slurm is told when its attempt has ended."""
    command = [sys.executable, "-m", "launch.attempt", "end", str(run.path), "--attempt=0", "--status=85"]
    command += ["--requeues=0", "--max-requeues=5", "--max-failures=3"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
