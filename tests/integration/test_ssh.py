"""Runs over real ssh on hosts with networks of their own: they train as one machine does, and end on all or none."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from configs.run import RunDirectory
from launch.snapshot import code_files, code_hash, snapshot
from tests.clusters.hosts import address, cut, heal, hosts, on_host
from tests.clusters.slurm import effnet, wait_for
from tests.clusters.ssh import CONFIG, FOLDER, TIMEOUT_S, ended, of_run, other_view, start
from tests.integration.runs import FAILS_ALIKE, cannot_say_so, final_state, last_step, logs, losses, train
from tests.integration.test_equivalence import assert_same

Overrides = Callable[..., list[str]]
TWO = {"trainer__devices": 2, "trainer__max_epochs": 4}


@pytest.fixture(scope="module", autouse=True)
def three_hosts() -> Iterator[None]:
    with hosts(3):
        yield


def told(run: RunDirectory) -> str:
    """What is worth reading when a test fails."""
    return logs(run)


def ranks(run: RunDirectory) -> list[psutil.Process]:
    """The processes that train, by rank."""
    found = []
    for process in of_run(run):
        with contextlib.suppress(psutil.Error):
            words = process.cmdline()
            if "trainer" in words and "trainer.agent" not in words:
                found.append((int(process.environ()["RANK"]), process))
    return [process for _, process in sorted(found, key=lambda pair: pair[0])]


@pytest.mark.parametrize(("hosts", "devices"), [(2, 2), (3, 1)])
def test_hosts_train_like_one_process(hosts: int, devices: int, toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "hosts")
    common = {"data__global_batch_size": 48, "data__micro_batch_size": 4, "optimizer__lr": 0.005}
    launcher = start(toy_overrides(trainer__devices=devices, **common), hosts=hosts, run=run)
    code, output, errors = ended(launcher)

    assert code == 0, errors + output + told(run)
    one = train(toy_overrides(**common), runs_dir=tmp_path, run_id="one")
    assert len(losses(one)) >= 9
    assert losses(run) == pytest.approx(losses(one), abs=1e-4)
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["done"]
    names = ", ".join(f"host{number} (eth0)" for number in range(1, hosts + 1))
    assert f"hosts: attempt 0 on {names}, meeting at {address(1)}:" in errors
    # Each line with its rank, from all of them.
    assert {line.partition(": ")[0] for line in output.splitlines()} == {str(r) for r in range(hosts * devices)}
    (code_dir,) = run.launch_dir.glob("code-*")
    assert str(code_dir) in run.environment_file.read_text()
    assert of_run(run) == []


# Preflight


def refused(launcher: "subprocess.Popen[str]", run: RunDirectory) -> str:
    """What a launch says that must end before ranks start, with exit code 93."""
    code, output, errors = ended(launcher)
    assert code == 93, errors + output
    assert "Traceback" not in errors
    assert run.attempts == 0
    assert of_run(run) == []
    return errors


def test_hosts_with_other_code_or_without_the_run_are_refused_by_name(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "refused")
    run.launch_dir.mkdir(parents=True)
    code_dir = snapshot(run)
    other, empty = tmp_path / "other", tmp_path / "empty"
    shutil.copytree(code_dir, other)
    (other / "trainer" / "ema.py").write_text("# other code\n")
    empty.mkdir()
    with other_view(2, code_dir, other), other_view(3, run.path, empty):
        said = refused(start(toy_overrides(data__global_batch_size=48), hosts=3, run=run), run)

    assert "2 problems" in said
    assert f"  host2\n      received  code {code_hash(other, code_files(other))} in {code_dir}\n" in said
    assert (
        f"  host3\n      received  nothing that was written here just now\n      accepted  {run.path} on storage"
        in said
    )
    assert "host1" not in said


def test_a_wrong_host_key_and_a_host_that_is_away_are_refused_by_name(toy_overrides: Overrides, tmp_path: Path) -> None:
    keys = (FOLDER / "ssh" / "ssh_known_hosts").read_text().split()[1:]
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    wrong = (tmp_path / "key.pub").read_text().split()[:2]
    known = tmp_path / "known_hosts"
    known.write_text(f"host1,host3 {' '.join(keys)}\nhost2 {' '.join(wrong)}\n")
    config = tmp_path / "ssh_config"
    config.write_text(CONFIG.read_text().replace(str(FOLDER / "ssh" / "ssh_known_hosts"), str(known)))
    run = RunDirectory(tmp_path / "refused")
    cut(3)
    try:
        said = refused(
            start([*toy_overrides(data__global_batch_size=48), f"launch.ssh.config_file={config}"], hosts=3, run=run),
            run,
        )
    finally:
        heal(3)

    assert "2 problems" in said
    assert '  host2\n      received  "Host key verification failed."\n' in said
    assert '  host3\n      received  "ssh: connect to host host3 port 22: ' in said


def test_a_port_in_use_and_an_address_of_nobody_are_refused(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "refused")
    busy = on_host(
        1, sys.executable, "-c", "import socket, time; s = socket.create_server(('', 4711)); time.sleep(600)"
    )
    holder = subprocess.Popen(busy)
    try:
        port_taken = refused(start([*toy_overrides(), "launch.ssh.master_port=4711"], hosts=2, run=run), run)
    finally:
        holder.kill()
        holder.wait()
    nobody = refused(start([*toy_overrides(), f"launch.ssh.master_addr={address(9)}"], hosts=2, run=run), run)

    assert f"  host1\n      received  {address(1)}:4711: [Errno 98] Address already in use" in port_taken
    assert f"  host1\n      received  {address(9)}: no interface with that address" in nobody


def test_a_firewall_between_hosts_is_seen_before_ranks_start(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "refused")
    unreachable = ["ip", "route", "add", "unreachable", address(1)]
    subprocess.run(on_host(2, *unreachable), check=True)
    try:
        said = refused(start(toy_overrides(), hosts=2, run=run), run)
    finally:
        subprocess.run(on_host(2, *unreachable[:2], "del", *unreachable[3:]), check=True)

    assert f"  host2\n      received  {address(1)}:" in said
    assert "No route to host" in said


# Values and secrets


def test_every_value_comes_through_as_it_is_and_the_key_is_nowhere(toy_overrides: Overrides, tmp_path: Path) -> None:
    pwned, key = tmp_path / "pwned", "0123456789abcdef" * 2 + "kept"
    nasty = f"a b\"c'd#e$(touch {pwned})`touch {pwned}`\\;f\n&|> é日 %h"
    folder = f'it\'s "$(touch {pwned.name})"\n日'
    python = tmp_path / folder / "my python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    config = tmp_path / "nasty.yaml"
    launch = {"python": str(python), "environment": {"NASTY": nasty}}
    config.write_text(json.dumps({"launch": launch, "tracking": {"tags": [nasty], "mode": "offline"}}))
    run = RunDirectory(tmp_path / folder / "nasty")
    overrides = [word for word in toy_overrides(trainer__devices=1) if not word.startswith("tracking.")]
    launcher = start([*overrides, "--config", str(config)], hosts=2, run=run, WANDB_API_KEY=key)
    wait_for(lambda: last_step(run) >= 3 or launcher.poll() is not None, what="steps")
    processes = [(process.cmdline(), process.environ()) for process in ranks(run)]
    shown = subprocess.run(["ps", "-ww", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    code, output, errors = ended(launcher)

    assert code == 0, errors + output + told(run)
    assert len(processes) == 2
    for _, environment in processes:
        assert environment["NASTY"] == nasty
        assert environment["WANDB_API_KEY"] == key
        assert environment["GLOO_SOCKET_IFNAME"] == "eth0"
    assert str(run.path) in processes[0][0]
    assert run.load_config().tracking.tags == (nasty,)
    assert of_run(run) == []
    assert not list(tmp_path.rglob("pwned*"))
    assert key not in shown + output + errors
    for file in run.path.rglob("*"):
        assert not file.is_file() or key.encode() not in file.read_bytes(), file


# Failures


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, toy_overrides: Overrides) -> RunDirectory:
    """A run of two processes that nothing befell."""
    return train(toy_overrides(**TWO), runs_dir=tmp_path_factory.mktemp("runs"), run_id="undisturbed")


def test_a_host_cut_off_in_mid_run_ends_all_and_is_named_and_nothing_is_lost(
    undisturbed: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "cut")
    settings = {"trainer__devices": 1, "launch__ssh__lost_after_s": 6, "launch__max_failures": 0}
    overrides = toy_overrides(**TWO | settings)
    launcher = start(overrides, hosts=2, run=run)
    wait_for(lambda: last_step(run) >= 8 or launcher.poll() is not None, what="steps")
    cut(2)
    try:
        code, output, errors = ended(launcher)
        # The launcher cannot reach that host: it has ended its ranks by itself.
        wait_for(lambda: of_run(run) == [], what="the end of all processes")
    finally:
        heal(2)

    assert code not in (0, 85, 93), errors + output
    assert "error: host2 was lost: Timeout, server host2 not responding" in errors, errors
    (outcome,) = run.outcomes()
    assert (outcome["host"], outcome["exit_class"]) == ("host2", "retry")

    code, output, errors = ended(start(overrides, hosts=2, run=run))
    assert code == 0, errors + told(run)
    assert_same(final_state(undisturbed), final_state(run))
    assert losses(undisturbed) == losses(run)


def test_a_rank_that_dies_ends_all_is_named_and_the_run_starts_again(
    undisturbed: RunDirectory, toy_overrides: Overrides, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "killed")
    overrides = toy_overrides(**TWO | {"trainer__devices": 1, "fault__restart_backoff_s": 0.1})
    launcher = start(["--quiet", *overrides], hosts=2, run=run)
    wait_for(lambda: last_step(run) >= 8 or launcher.poll() is not None, what="steps")
    rank = ranks(run)[1]
    host = f"host{int(rank.environ()['EFFNET_SSH_SESSION'].rpartition('-')[2]) + 1}"
    rank.kill()
    code, output, errors = ended(launcher)

    assert code == 0, errors + output + told(run)
    first, second = run.outcomes()
    assert (first["rank"], first["host"], first["reason"]) == (1, host, "killed by SIGKILL")
    assert second["exit_class"] == "done"
    assert f"rank 1 ({host})" in errors
    assert output == ""  # quiet
    assert_same(final_state(undisturbed), final_state(run))
    assert losses(undisturbed) == losses(run)
    assert of_run(run) == []


def test_a_launcher_that_is_killed_leaves_nothing_on_any_host(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "orphans")
    overrides = toy_overrides(trainer__devices=1, trainer__max_epochs=300, data__num_workers=1)
    launcher = start(overrides, hosts=2, run=run)
    wait_for(lambda: last_step(run) >= 3 or launcher.poll() is not None, what="steps")
    assert len(of_run(run)) > 6
    launcher.kill()

    wait_for(lambda: of_run(run) == [], what="the end of all processes")
    launcher.communicate()


# Verbs


def test_a_run_is_watched_followed_and_cancelled(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "watched")
    launcher = start(toy_overrides(trainer__devices=1, trainer__max_epochs=300), hosts=2, run=run)
    wait_for(lambda: last_step(run) >= 3 or launcher.poll() is not None, what="steps")
    shown = effnet("status", str(run.path))
    follow = [sys.executable, "-m", "launch.cli", "logs", str(run.path), "--follow", "--rank", "1"]
    follower = subprocess.Popen(follow, stdout=subprocess.PIPE, text=True)
    assert "told to checkpoint" in effnet("cancel", str(run.path))
    code, output, errors = ended(launcher)
    followed, _ = follower.communicate(timeout=TIMEOUT_S)

    assert f"running (process {launcher.pid} on {os.uname().nodename})" in shown
    assert code == 85, errors + output
    assert f"effnet launch ssh --run {run.path}, goes on" in " ".join(errors.split())
    assert {line[:3] for line in followed.splitlines()} == {"1: "}
    (outcome,) = run.outcomes()
    assert outcome["reason"] == f"SIGTERM at step {last_step(run)}: checkpointed"
    assert run.latest_checkpoint() == f"step-{last_step(run):09d}"
    assert of_run(run) == []


def test_a_run_is_ended_at_once(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "ended")
    launcher = start(toy_overrides(trainer__devices=1, trainer__max_epochs=300), hosts=2, run=run)
    wait_for(lambda: run.attempts == 1 or launcher.poll() is not None, what="the attempt")
    effnet("cancel", str(run.path), "--now")
    code, output, errors = ended(launcher)

    assert code not in (0, 85, 93), errors + output
    assert of_run(run) == []
    assert run.latest_checkpoint() is None


def test_a_launch_is_stopped_while_hosts_are_asked(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "stopped")
    cut(2)
    try:
        launcher = start(toy_overrides(), hosts=2, run=run)
        wait_for(lambda: (run.launch_dir / "ssh.json").exists() or launcher.poll() is not None, what="the launch")
        launcher.terminate()
        code, output, errors = ended(launcher)
    finally:
        heal(2)

    assert code == 85, errors + output
    assert "stopped before ranks were started" in errors
    assert run.attempts == 0
    assert of_run(run) == []


@pytest.mark.slow
def test_hosts_that_fail_twice_alike_end_with_93(toy_overrides: Overrides, tmp_path: Path) -> None:
    run = cannot_say_so(RunDirectory(tmp_path / "alike"))
    overrides = toy_overrides(trainer__devices=1, fault__restart_backoff_s=0.1, **FAILS_ALIKE)
    code, output, errors = ended(start(overrides, hosts=1, run=run))

    assert code == 93, errors + output + told(run)
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["retry", "do_not_retry"]
    assert "(attempt 0 failed at the same step in the same way)" in errors
