"""Checkpoints in W&B: the real client, and a server on loopback."""

import hashlib
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
from typing import Any

import pytest
import torch
import wandb
from safetensors.torch import load_file, save_file

from configs.files import read_json
from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from tests.disks import fill, small_disk
from tests.integration.runs import signal_after, start
from tests.integration.runs import train as train_by_command
from tests.unit.trainer.runs import average, give, new_run, sync, train
from tests.wandb_server import Artifact, WandbServer
from tests.web import FaultyServer
from trainer.artifact_snapshots import card_of, take
from trainer.checkpoint_artifacts import CheckpointArtifacts
from trainer.checkpoints import CheckpointDirectory
from trainer.consolidation import load_saved_weights
from trainer.network import build_network
from trainer.signals import StopFlag
from trainer.tracking import SafeWandbLogger, sync_command

Overrides = Callable[..., list[str]]
ONLINE = {"tracking__mode": "online", "tracking__project": "toys", "trainer__max_steps": 10}
ZERO = ONLINE | {"trainer__strategy": "deepspeed", "trainer__devices": 2, "optimizer__opt": "adamw"}
PARTS = {
    "checkpoint.ckpt/checkpoint/zero_pp_rank_0_mp_rank_00_optim_states.pt",
    "checkpoint.ckpt/checkpoint/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "weights.safetensors",
    "optimizer.safetensors",
    "state.ckpt",
}
"""Some of what two processes leave under ZeRO."""


def versions(run: RunDirectory, server: WandbServer) -> dict[int, Artifact]:
    """By the step of the checkpoint."""
    return {each.metadata["step"]: each for each in server.versions(f"model-{run.wandb_id()}")}


def snapshots(run: RunDirectory) -> list[str]:
    return sorted(path.name for path in (run.wandb_dir / "checkpoints").glob("*"))


def assert_whole(version: Artifact) -> None:
    """The server has what the checkpoint's manifest says, and the manifest."""
    expected = {name: known["sha256"] for name, known in version.metadata["files"].items()}
    manifest = json.loads(version.files["manifest.json"])
    assert manifest["files"] == version.metadata["files"]
    found = {name: hashlib.sha256(content).hexdigest() for name, content in version.files.items()}
    assert {name: found[name] for name in expected} == expected
    assert set(found) == {*expected, "manifest.json", "README.md"}


def when(condition: Callable[[], bool], act: Callable[[], Any]) -> None:
    """Do something beside training, once it has come so far."""

    def wait() -> None:
        until = time.monotonic() + 120
        while not condition() and time.monotonic() < until:
            time.sleep(0.005)
        act()

    threading.Thread(target=wait, daemon=True).start()


@pytest.mark.parametrize("mode", ["online", "offline"])
def test_the_best_and_the_last_checkpoint_are_versions_of_one_artifact_that_says_what_is_known_of_them(
    mode: str, server: WandbServer, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ONLINE | {"tracking__mode": mode, "tracking__checkpoint_artifacts": "best_and_last"}
    run = train(new_run(toy_overrides(**settings, checkpoint__monitor="val/ema_loss"), tmp_path))
    if mode == "offline":
        assert server.artifacts == {}
        assert snapshots(run)
        sync(run, server)

    found = versions(run, server)
    manifests = {int(path.name[5:]): read_json(path / "manifest.json") for path in run.checkpoints.glob("step-*")}
    assert len(manifests) == 2
    losses = {step: manifest["metrics"]["val/ema_loss"] for step, manifest in manifests.items()}
    best = min(losses, key=lambda step: losses[step])
    assert set(found) == {best, 10}
    assert "best" in found[best].aliases
    assert "latest" in found[10].aliases
    for step, version in found.items():
        assert f"step-{step:09d}" in version.aliases
        assert_whole(version)
        assert version.metadata["metrics"] == manifests[step]["metrics"]
        assert f"{manifests[step]['metrics']['val/ema_top1']:.4f}" in version.files["README.md"].decode()
    if mode == "online":
        assert snapshots(run) == []
        assert list(run.wandb_dir.glob("run-*/*.synced"))
        sync(run, server)
        assert len(versions(run, server)) == len(found)
    assert server.unknown == []

    (code,) = re.findall(r"```python\n(.*?)```", found[10].files["README.md"].decode(), re.DOTALL)
    (tmp_path / "checkpoint.ckpt").write_bytes(found[10].files["checkpoint.ckpt"])
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    expected = average(run, 10)
    loaded = names["model"].state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


def test_a_checkpoint_that_retention_removes_while_it_is_sent_comes_whole_and_no_save_waits_for_it(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"tracking__checkpoint_artifacts": "all", "checkpoint__every_n_steps": 2, "checkpoint__keep_last": 1}
    run = new_run(toy_overrides(**ONLINE, **settings, checkpoint__keep_best=None), tmp_path)
    server.held = {"checkpoint.ckpt"}
    when(lambda: (run.checkpoints / "step-000000008").exists(), server.held.clear)
    train(run)

    assert [path.name for path in run.checkpoints.glob("step-*")] == ["step-000000010"]
    found = versions(run, server)
    assert {2, 10} <= set(found)
    assert len(found) < 5
    for version in found.values():
        assert_whole(version)
    assert "latest" in found[10].aliases
    assert caplog.text.count("slower than they are saved") == 1
    assert snapshots(run) == []


def test_a_kill_while_a_checkpoint_is_sent_has_the_next_attempt_send_it_to_the_same_artifact(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    settings = {"tracking__checkpoint_artifacts": "all", "checkpoint__every_n_steps": 4}
    run = new_run(toy_overrides(**ONLINE, **settings), tmp_path)
    server.held = {"checkpoint.ckpt"}
    log_dir = run.log_dir(0)
    log_dir.mkdir(parents=True)
    command = [sys.executable, "-m", "trainer", "fit", str(run.path), f"--log-dir={log_dir}", "--attempt=0"]
    process = subprocess.Popen(command, env=server.environment(), stdout=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + 120
    while not any("README.md" in each.files for each in server.artifacts.values()):
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert versions(run, server) == {}
    assert "step-000000004" in snapshots(run)

    server.held.clear()
    train(run, attempt=1)
    found = versions(run, server)
    assert {4, 10} <= set(found)
    for version in found.values():
        assert_whole(version)
    assert [step for step, version in found.items() if "latest" in version.aliases] == [10]
    assert snapshots(run) == []


def test_a_server_that_hangs_holds_up_no_checkpoint_and_gets_the_last_one_from_the_command_that_is_told(
    server: WandbServer,
    toy_overrides: Overrides,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("trainer.tracking.FINISH_TIMEOUT_S", 2.0)
    monkeypatch.setattr("trainer.checkpoint_artifacts.HANDOVER_TIMEOUT_S", 2.0)
    settings = {"tracking__checkpoint_artifacts": "all", "checkpoint__every_n_steps": 2}
    run = new_run(toy_overrides(**ONLINE, **settings), tmp_path)

    def hang() -> None:
        server.fault = "hang"

    when(lambda: 2 in versions(run, server), hang)
    train(run)

    assert [path.name for path in sorted(run.checkpoints.glob("step-*"))][-1] == "step-000000010"
    assert caplog.text.count("W&B has not taken all rows") == 1
    assert sync_command(run) in caplog.text
    assert "step-000000010" in snapshots(run)
    server.fault = None
    wandb.teardown()
    sync(run, server)
    (command,) = re.findall(r"step-000000010, until it is sent by: (.*)", caplog.text)
    give(command, run, server)
    last = server.versions(f"model-{run.wandb_id()}")[-1]
    assert last.files["checkpoint.ckpt"] == (run.checkpoints / "step-000000010/checkpoint.ckpt").read_bytes()
    assert {"latest", "step-000000010"} <= last.aliases
    uploads = len(server.artifacts)
    train(run, attempt=1)  # it had reached its end
    assert snapshots(run) == []
    assert len(server.artifacts) == uploads


def test_checkpoints_in_remote_storage_are_referred_to_and_not_sent(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    folder = f"file://{tmp_path}/bucket"
    settings = {"tracking__checkpoint_artifacts": "last", "checkpoint__remote_dir": folder}
    run = train(new_run(toy_overrides(**ONLINE, **settings), tmp_path))

    (version,) = versions(run, server).values()
    assert set(version.files) == {"README.md", "manifest.json"}
    entry = version.entries["checkpoint.ckpt"]
    expected = version.metadata["files"]["checkpoint.ckpt"]
    assert entry["ref"] == f"{folder}/toy/step-000000010/checkpoint.ckpt"
    assert (entry["digest"], entry["size"]) == (expected["sha256"], expected["bytes"])
    there = Path(entry["ref"].removeprefix("file://")).read_bytes()
    assert hashlib.sha256(there).hexdigest() == expected["sha256"]
    assert snapshots(run) == []


def saved(directory: CheckpointDirectory, step: int) -> Path:
    """A checkpoint in shards, as DeepSpeed's are."""
    temporary = directory.begin(step)
    shard = temporary / "checkpoint.ckpt" / "checkpoint" / "zero_pp_rank_0.pt"
    shard.parent.mkdir(parents=True)
    shard.write_bytes(b"shard" * 1000)
    (temporary / "weights.safetensors").write_bytes(b"weights")
    return directory.commit(step, manifest={"metrics": {}})


def test_a_snapshot_has_all_shards_without_taking_room_and_outlives_its_checkpoint(tmp_path: Path) -> None:
    checkpoint = saved(CheckpointDirectory(tmp_path / "checkpoints"), 3)
    shard = checkpoint / "checkpoint.ckpt/checkpoint/zero_pp_rank_0.pt"
    snapshot = take(tmp_path / "wandb", checkpoint, aliases=["latest"], offline=False, card="", with_files=True)

    inside = "checkpoint.ckpt/checkpoint/zero_pp_rank_0.pt"
    assert set(snapshot.files) == {inside, "weights.safetensors", "manifest.json", "README.md"}
    assert snapshot.files[inside].stat().st_ino == shard.stat().st_ino
    shard.unlink()
    assert snapshot.files[inside].read_bytes() == b"shard" * 1000


@pytest.mark.parametrize("kind", ["raw", "ema"])
def test_the_card_of_a_checkpoint_in_shards_loads_its_whole_weights(
    kind: str, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(toy_overrides(ema__enabled=kind == "ema"), tmp_path)
    config = run.load_config()
    checkpoint = saved(CheckpointDirectory(run.checkpoints), 3)
    expected = build_network(config).state_dict()
    save_file({f"{kind}.{name}": tensor for name, tensor in expected.items()}, checkpoint / "weights.safetensors")
    card = card_of(run, config, checkpoint, parameters=5)

    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    monkeypatch.chdir(checkpoint)
    names: dict[str, Any] = {}
    exec(code, names)
    loaded = names["model"].state_dict()
    assert all(torch.equal(expected[name], loaded[name]) for name in loaded)
    assert expected.keys() == loaded.keys()


def assert_card_loads(kind: str, version: Artifact, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code on the card of a version, in a folder with its files, makes the network with weights of that kind."""
    (code,) = re.findall(r"```python\n(.*?)```", version.files["README.md"].decode(), re.DOTALL)
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code, names)
    expected, loaded = load_saved_weights(folder / "weights.safetensors")[kind], names["model"].state_dict()
    assert expected.keys() == loaded.keys()
    assert all(torch.equal(expected[name], loaded[name]) for name in expected)


def write(version: Artifact, folder: Path) -> Path:
    """As `wandb artifact get` does."""
    for name, content in version.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.slow  # three starts of two ranks with DeepSpeed
def test_a_zero_run_sends_all_parts_over_a_signal_and_another_run_goes_on_from_what_w_and_b_has(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"deepspeed__zero_stage": 3, "tracking__checkpoint_artifacts": "all", "checkpoint__every_n_steps": 4}
    settings |= {"checkpoint__keep_last": 1, "checkpoint__keep_best": None, "ema__enabled": False}
    overrides = toy_overrides(**ZERO | settings)
    run = RunDirectory(tmp_path / "toy")
    process = start(overrides, runs_dir=tmp_path, run_id="toy")
    said = signal_after(process, run, step=5)
    assert process.returncode == 85, said
    train_by_command(overrides, runs_dir=tmp_path, run_id="toy")

    found = versions(run, server)
    (stopped,) = set(found) - {4, 8, 9, 10}
    assert {4, stopped, 10} <= set(found)
    for version in found.values():
        assert set(version.files) > PARTS
        assert_whole(version)
    assert [step for step, version in found.items() if "latest" in version.aliases] == [10]
    assert snapshots(run) == []
    assert server.unknown == []

    folder = write(found[stopped], tmp_path / f"step-{stopped:09d}")
    other = train_by_command(
        [*overrides, f"resume={folder}", "tracking.mode=disabled"], runs_dir=tmp_path / "other", run_id="other"
    )
    ends = [load_file(each.checkpoints / "step-000000010/weights.safetensors") for each in (run, other)]
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(tensor, ends[1][name]) for name, tensor in ends[0].items())
    assert_card_loads("raw", found[stopped], folder, monkeypatch)


@pytest.mark.slow
def test_parts_of_a_zero_run_that_is_kept_on_disk_come_whole_with_the_sync(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"deepspeed__zero_stage": 2, "tracking__checkpoint_artifacts": "last", "tracking__mode": "offline"}
    run = train_by_command(toy_overrides(**ZERO | settings), runs_dir=tmp_path, run_id="toy")
    assert server.artifacts == {}
    sync(run, server)

    found = versions(run, server)
    assert set(found) == {10}
    assert set(found[10].files) > PARTS
    assert_whole(found[10])
    card = found[10].files["README.md"].decode()
    assert all(f"| {name} |" in card for name in ("weights.safetensors", "optimizer.safetensors", "state.ckpt"))
    assert_card_loads("ema", found[10], write(found[10], tmp_path / "sent"), monkeypatch)


@pytest.mark.slow
def test_parts_of_a_zero_run_in_remote_storage_are_referred_to_one_by_one(
    server: WandbServer, toy_overrides: Overrides, tmp_path: Path
) -> None:
    folder = f"file://{tmp_path}/bucket"
    settings = {"deepspeed__zero_stage": 2, "tracking__checkpoint_artifacts": "last"}
    overrides = toy_overrides(**ZERO | settings, checkpoint__remote_dir=folder)
    run = train_by_command(overrides, runs_dir=tmp_path, run_id="toy")

    (version,) = versions(run, server).values()
    assert set(version.files) == {"README.md", "manifest.json"}
    referred = {name: entry["ref"] for name, entry in version.entries.items() if "ref" in entry}
    assert set(referred) > PARTS
    for name, expected in version.metadata["files"].items():
        there = Path(referred[name].removeprefix("file://")).read_bytes()
        assert hashlib.sha256(there).hexdigest() == expected["sha256"]


def test_a_full_disk_costs_no_checkpoint_and_is_said_once(
    toy_overrides: Overrides, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    overrides = toy_overrides(tracking__checkpoint_artifacts="all", tracking__mode="online")
    with small_disk(tmp_path / "toy", size_bytes=1_000_000) as place:
        run = new_run(overrides, tmp_path)
        checkpoints = [saved(CheckpointDirectory(run.checkpoints), step) for step in (1, 2)]
        run.wandb_id()
        fill(place)
        artifacts = CheckpointArtifacts(run.load_config(), run, SafeWandbLogger(save_dir=str(place)), StopFlag())
        for checkpoint in checkpoints:
            artifacts.saved(checkpoint)
            assert checkpoint.exists()
    assert caplog.text.count("W&B does not get checkpoint step-000000001: OSError: [Errno 28]") == 1
    assert caplog.text.count("W&B does not get") == 1


def test_a_server_without_names_of_classes_holds_saves_up_once_and_not_for_long(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    (tmp_path / "classes.json").write_text('["a", "b", "c", "d"]')
    server = FaultyServer(tmp_path)
    server.always["/classes.json"] = "503"
    urls = server.url("toy-validation-{00000..00001}.tar")
    overrides = toy_overrides(tracking__checkpoint_artifacts="all", tracking__mode="online", data__val_shards=urls)
    run = new_run([*overrides, "data.download_attempts=3"], tmp_path)
    artifacts = CheckpointArtifacts(run.load_config(), run, SafeWandbLogger(save_dir=str(run.path)), StopFlag())
    for step in (1, 2):
        artifacts.saved(saved(CheckpointDirectory(run.checkpoints), step))
    server.close()

    assert "| classes | 4 |" in (run.wandb_dir / "checkpoints/step-000000002/README.md").read_text()
    assert server.gets("classes.json") == 2


def test_the_best_checkpoint_is_no_policy_where_none_is_kept(toy_overrides: Overrides) -> None:
    overrides = toy_overrides(checkpoint__keep_best=None, tracking__checkpoint_artifacts="best")
    with pytest.raises(ConfigError, match="none, last or all: no best checkpoint is kept"):
        load_config([], overrides)
