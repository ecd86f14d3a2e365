"""What befalls a run, and what comes of it: it ends with the very weights of a run that nothing befell."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from configs.load import load_config
from configs.rank_records import rank_errors, rank_log
from configs.run import RunDirectory
from launch.attempt import begin, end
from tests.clusters.hosts import address, cut, heal, hosts, on_host
from tests.integration.runs import (
    TIMEOUT_S,
    final_state,
    last_step,
    logs,
    losses,
    rows,
    signal_after,
    start,
    train,
    wait_for_step,
)
from tests.integration.test_equivalence import assert_same

Overrides = Callable[..., list[str]]
Strike = Callable[["subprocess.Popen[str]", random.Random], str]
ROOT = Path(__file__).parents[2]
MOMENTS = [3, pytest.param(20, marks=pytest.mark.slow)]
EVERYTHING_ON = {
    "trainer__devices": 2,
    "data__num_workers": 2,
    "trainer__max_epochs": 6,
    "checkpoint__every_n_steps": 1,  # so that a strike finds a save at work
}


@pytest.fixture(scope="module")
def overrides(toy_overrides: Overrides) -> list[str]:
    """Two gloo processes of two workers, fp32, EMA, Mixup, CutMix, dropout."""
    return toy_overrides(**EVERYTHING_ON)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, overrides: list[str]) -> RunDirectory:
    """The run that nothing befell."""
    return train(overrides, runs_dir=tmp_path_factory.mktemp("runs"), run_id="undisturbed")


def ranks(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that train, by rank."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            rank = child.environ().get("RANK")
            if rank is not None and child.parent().environ().get("RANK") is None:
                found.append((int(rank), child))
        except psutil.Error:
            continue
    return [child for _, child in sorted(found, key=lambda pair: pair[0])]


def workers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """Loader processes of all ranks."""
    return [child for rank in ranks(process) for child in rank.children()]


def kill_one_rank(process: "subprocess.Popen[str]", rng: random.Random) -> str:
    rng.choice(ranks(process)).kill()
    return "one rank killed"


def kill_all_ranks(process: "subprocess.Popen[str]", rng: random.Random) -> str:
    for rank in ranks(process):
        rank.kill()
    return "all ranks killed"


def kill_launcher(process: "subprocess.Popen[str]", rng: random.Random) -> str:
    os.kill(process.pid, signal.SIGKILL)
    return "launcher killed"


def send_signal(process: "subprocess.Popen[str]", rng: random.Random) -> str:
    number = rng.choice([signal.SIGTERM, signal.SIGUSR1])
    process.send_signal(number)
    return number.name


def struck(
    strikes: list[Strike], run: RunDirectory, overrides: list[str], *, moments: int, rng: random.Random
) -> list[tuple[str, int, int | None]]:
    """Strike a run at random moments, each time after some progress, until it is through or has had enough.

    Returns:
        For each strike what it was, the step before it, and the launcher's exit code.
    """
    found: list[tuple[str, int, int | None]] = []
    while len(found) < moments:
        wanted = last_step(run) + 1 + rng.randrange(2)
        process = start(overrides, runs_dir=run.path.parent, run_id=run.run_id)
        deadline = time.monotonic() + TIMEOUT_S
        while process.poll() is None and last_step(run) < wanted:
            assert time.monotonic() < deadline, logs(run)
            time.sleep(0.005)
        time.sleep(rng.random() * 0.4)
        if process.poll() is not None:
            output = process.communicate()[0]
            assert process.returncode == 0, output + logs(run)
            break
        descendants = psutil.Process(process.pid).children(recursive=True)
        what = strikes[len(found) % len(strikes)](process, rng)
        output, _ = process.communicate(timeout=TIMEOUT_S)
        _, alive = psutil.wait_procs(descendants, timeout=60)
        assert not alive, f"{what}: {alive} are left"
        found.append((what, last_step(run), process.returncode))
    return found


def until_done(strikes: list[Strike], moments: int, overrides: list[str], runs_dir: Path) -> list[RunDirectory]:
    """As many runs as it takes for all moments, each trained to its end."""
    rng, left, done = random.Random(moments), moments, []
    while left > 0:
        run = RunDirectory(runs_dir / f"struck-{len(done)}")
        found = struck(strikes, run, overrides, moments=left, rng=rng)
        print(json.dumps(found))
        left -= len(found)
        train(overrides, runs_dir=runs_dir, run_id=run.run_id)
        done.append(run)
    return done


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_run_killed_at_random_moments_ends_the_same(
    moments: int, undisturbed: RunDirectory, overrides: list[str], tmp_path: Path
) -> None:
    for run in until_done([kill_one_rank, kill_all_ranks, kill_launcher], moments, overrides, tmp_path):
        assert_same(final_state(undisturbed), final_state(run))
        assert losses(undisturbed) == losses(run)


@pytest.mark.parametrize("moments", MOMENTS)
def test_a_run_signalled_at_random_moments_ends_the_same(
    moments: int, undisturbed: RunDirectory, overrides: list[str], tmp_path: Path
) -> None:
    for run in until_done([send_signal], moments, overrides, tmp_path):
        assert {outcome["exit_code"] for outcome in run.outcomes()[:-1]} == {85}
        assert_same(final_state(undisturbed), final_state(run))
        assert losses(undisturbed) == losses(run)
        assert [row["step"] for row in rows(undisturbed)] == [row["step"] for row in rows(run)]


def truncated(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.ckpt"
    os.truncate(file, file.stat().st_size // 2)


def bit_flipped(checkpoint: Path) -> None:
    file = checkpoint / "checkpoint.ckpt"
    with file.open("r+b") as stream:
        stream.seek(file.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))


def without_manifest(checkpoint: Path) -> None:
    (checkpoint / "manifest.json").unlink()


def half_renamed(checkpoint: Path) -> None:
    checkpoint.rename(checkpoint.with_name(f"{checkpoint.name}.tmp"))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory, overrides: list[str]) -> RunDirectory:
    """A run that was stopped by a signal with several checkpoints."""
    run = RunDirectory(tmp_path_factory.mktemp("runs") / "stopped")
    process = start(overrides, runs_dir=run.path.parent, run_id=run.run_id)
    output = signal_after(process, run, step=10)
    assert process.returncode == 85, output
    return run


@pytest.mark.parametrize("damage", [truncated, bit_flipped, without_manifest, half_renamed])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None],
    stopped: RunDirectory,
    undisturbed: RunDirectory,
    overrides: list[str],
    tmp_path: Path,
) -> None:
    run = RunDirectory(tmp_path / "damaged")
    shutil.copytree(stopped.path, run.path)
    newest, before = sorted(run.checkpoints.glob("step-*"), reverse=True)[:2]
    damage(newest)

    train(overrides, runs_dir=tmp_path, run_id="damaged")

    said = rank_log(run.log_dir(1), 0).read_text()
    assert f"resumed at step {int(before.name.removeprefix('step-'))}" in said
    assert damage is half_renamed or newest.name in said
    assert_same(final_state(undisturbed), final_state(run))
    assert losses(undisturbed) == losses(run)


def test_a_killed_worker_of_the_loader_ends_the_attempt_and_loses_nothing(
    undisturbed: RunDirectory, overrides: list[str], tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "worker")
    process = start(overrides, runs_dir=tmp_path, run_id="worker")
    wait_for_step(run, 8, process)
    workers(process)[0].kill()
    output, _ = process.communicate(timeout=TIMEOUT_S)

    assert process.returncode not in (0, 85, 93), output
    assert "worker" in run.outcomes()[0]["reason"]
    train(overrides, runs_dir=tmp_path, run_id="worker")
    assert_same(final_state(undisturbed), final_state(run))
    assert losses(undisturbed) == losses(run)


def start_on_two_hosts(run: RunDirectory) -> "list[subprocess.Popen[bytes]]":
    """Begin an attempt with a process on each of two hosts."""
    attempt, port = begin(run)
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--max-restarts=0"]
    command += [f"--master-addr={address(1)}", f"--master-port={port}"]
    trainer = ["-m", "trainer", "fit", str(run.path), f"--log-dir={run.log_dir(attempt)}", f"--attempt={attempt}"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": str(ROOT)}
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    return [
        subprocess.Popen(on_host(host, *command, f"--node-rank={host - 1}", *trainer), env=environment, **quiet)
        for host in (1, 2)
    ]


def test_a_network_that_is_cut_ends_both_sides_and_loses_nothing(
    undisturbed: RunDirectory, overrides: list[str], tmp_path: Path
) -> None:
    config = load_config([], [*overrides, "fault.timeout_s=20", f"runs_dir={tmp_path}", "run_id=cut"]).config
    run = RunDirectory.of(config)
    run.freeze(config)
    with hosts(2):
        sides = start_on_two_hosts(run)
        wait_for_step(run, 8, *sides)
        cut(2)
        for side in sides:  # long before NCCL's or gloo's half hour
            assert side.wait(timeout=TIMEOUT_S) not in (0, 85, 93)
        heal(2)
        lost = end(run, attempt=0, status=1)
        assert lost["exit_class"] == "retry"
        assert {error["rank"] for error in rank_errors(run.log_dir(0))} == {0, 1}

        sides = start_on_two_hosts(run)
        assert [side.wait(timeout=TIMEOUT_S) for side in sides] == [0, 0], logs(run)
    assert_same(final_state(undisturbed), final_state(run))
    assert losses(undisturbed) == losses(run)
