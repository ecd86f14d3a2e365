"""Jobs on a real Slurm: they train as one process does, go on after any interruption, and end for the right reason."""

import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from configs.run import RunDirectory
from launch.ledger import submissions
from tests.clusters.slurm import TIMEOUT_S, command, effnet, job, slurm_cluster, wait_for
from tests.integration.runs import FAILS_ALIKE, cannot_say_so, final_state, last_step, losses, rows, train
from tests.integration.test_equivalence import assert_same

Overrides = Callable[..., list[str]]
ENDED = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL"}


@pytest.fixture(scope="module", autouse=True)
def cluster() -> Iterator[None]:
    with slurm_cluster(2):
        yield


@pytest.fixture
def submit(tmp_path: Path) -> Iterator[Callable[..., tuple[RunDirectory, str]]]:
    """Submits a run with `effnet launch slurm`: its directory and its job."""

    def submit(overrides: list[str], run_id: str = "job") -> tuple[RunDirectory, str]:
        effnet("launch", "slurm", *overrides, f"runs_dir={tmp_path}", f"run_id={run_id}")
        run = RunDirectory(tmp_path / run_id)
        return run, submissions(run)[-1].job_id

    yield submit
    subprocess.run(["scancel", "--user=root"], check=True)
    wait_for(lambda: command("squeue", "--noheader") == "", what="the end of all jobs")


def told(run: RunDirectory) -> str:
    """What is worth reading when a test fails."""
    files = [*run.launch_dir.glob("slurm-*.out"), *run.path.glob("logs/*/*.log"), run.outcome_file]
    return "\n".join(f"--- {file}\n{file.read_text()[-4000:]}" for file in files if file.exists())


def wait_until_ended(run: RunDirectory, job_id: str, state: str) -> None:
    wait_for(lambda: job(job_id, "JobState") in ENDED, what=f"the end of the job\n{told(run)}")
    assert job(job_id, "JobState") == state, told(run)


def wait_for_step(run: RunDirectory, step: int) -> None:
    wait_for(lambda: last_step(run) >= step, what=f"step {step}\n{told(run)}")


def wait_for_outcome(run: RunDirectory, attempt: int) -> dict[str, object]:
    wait_for(lambda: len(run.outcomes()) > attempt, what=f"the end of attempt {attempt}\n{told(run)}")
    return run.outcomes()[attempt]


def set_time_limit(job_id: str, *, minutes: int) -> None:
    """Of a job that is about to go back into the queue."""
    wait_for(lambda: job(job_id, "JobState") == "PENDING", what="the job in the queue")
    command("scontrol", "update", f"JobId={job_id}", f"TimeLimit={minutes}")


def trainers(run: RunDirectory, *, global_rank: int) -> list[psutil.Process]:
    """The training process of a rank, without its parent."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if str(run.path) in process.cmdline() and "trainer" in process.cmdline():
                found += [process] if process.environ()["RANK"] == str(global_rank) else []
    return found


def slow_down(run: RunDirectory, *, until: Callable[[], bool]) -> None:
    """Let the first rank run for a quarter of the time, so that it is still at work when something comes late."""

    def held() -> bool:
        with contextlib.suppress(psutil.NoSuchProcess, ValueError):  # between two attempts there is none
            (rank,) = trainers(run, global_rank=0)
            rank.suspend()
            time.sleep(0.3)
            rank.resume()
        time.sleep(0.1)
        return until()

    wait_for(held, what=f"the end of a slow attempt\n{told(run)}")


def test_two_nodes_of_two_tasks_train_like_one_process(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides, tmp_path: Path
) -> None:
    common = {"data__global_batch_size": 32, "data__image_size": 128, "optimizer__lr": 0.005}
    job_run, job_id = submit(toy_overrides(trainer__devices=2, trainer__num_nodes=2, **common))
    one = train(toy_overrides(**common), runs_dir=tmp_path, run_id="one")
    wait_until_ended(job_run, job_id, "COMPLETED")

    assert len(losses(one)) >= 12
    assert losses(job_run) == pytest.approx(losses(one), abs=1e-4)
    assert [outcome["exit_class"] for outcome in job_run.outcomes()] == ["done"]
    logs = sorted(path.name for path in job_run.log_dir(0).glob("rank_*.log"))
    assert logs == [f"rank_{rank:05d}.log" for rank in range(4)]
    facts = json.loads((job_run.log_dir(0) / "attempt.json").read_text())
    assert facts["SLURM_JOB_NODELIST"] == "node[1-2]"
    (code,) = job_run.launch_dir.glob("code-*")
    assert json.loads(job_run.environment_file.read_text())[0]["code"] == str(code)
    # All ranks in one stream, by time.
    printed = effnet("logs", str(job_run.path)).splitlines()
    assert {line.partition(":")[0] for line in printed} >= {"0", "1", "2", "3"}
    times = [line.partition(": ")[2][:23] for line in printed if "INFO effnet" in line]
    assert len(times) > 8
    assert times == sorted(times)
    assert all(line.startswith("2: ") for line in effnet("logs", str(job_run.path), "--rank", "2").splitlines())
    assert "done" in effnet("runs", "--runs-dir", str(tmp_path))


def test_a_job_goes_on_after_requeue_preemption_and_time_limit_and_ends_with_the_same_weights(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides, tmp_path: Path
) -> None:
    settings = {"trainer__max_epochs": 25, "tracking__mode": "offline"}
    limits = {"launch__time_limit_minutes": 60, "launch__slurm__signal_before_s": 55}
    run, job_id = submit(toy_overrides(trainer__devices=1, trainer__num_nodes=2, **settings, **limits))
    wait_for_step(run, 3)
    command("scontrol", "requeue", job_id)
    wait_for_step(run, 12)
    urgent = "#!/bin/bash\n#SBATCH --partition=urgent --nodes=2 --exclusive --output=/dev/null\nsleep 1\n"
    command("sbatch", given=urgent)
    wait_for_outcome(run, 1)
    set_time_limit(job_id, minutes=1)
    begun = last_step(run)
    wait_for(lambda: last_step(run) > begun or len(run.outcomes()) > 2, what=f"a step\n{told(run)}")
    slow_down(run, until=lambda: len(run.outcomes()) > 2)  # Slurm looks at limits every 30 s
    command("scontrol", "update", f"JobId={job_id}", "TimeLimit=60")  # before it begins again, and meets the old one
    wait_until_ended(run, job_id, "COMPLETED")

    outcomes = run.outcomes()
    assert [outcome["exit_class"] for outcome in outcomes] == ["interrupted"] * 3 + ["done"], told(run)
    assert [str(outcome["reason"]).partition(" ")[0] for outcome in outcomes[1:3]] == ["SIGUSR1"] * 2
    assert "SIGTERM" in outcomes[0]["reason"]
    assert job(job_id, "Restarts") == "3"
    wandb_id = (run.wandb_dir / "wandb_id").read_text()
    fragments = sorted(path.name for path in run.wandb_dir.glob("offline-run-*"))
    # Slurm's signal reaches W&B's process too, which is begun again in the same run.
    assert {name.rpartition("-")[2] for name in fragments} == {wandb_id}
    assert len(fragments) >= 4

    whole = train(toy_overrides(trainer__devices=2, **settings), runs_dir=tmp_path, run_id="whole")
    assert losses(run) == losses(whole)
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(whole)]
    ours, theirs = final_state(run), final_state(whole)
    assert_same(ours, theirs)


def test_a_rank_that_dies_is_named_the_job_starts_again_and_cancel_checkpoints_it(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides
) -> None:
    overrides = toy_overrides(trainer__devices=1, trainer__num_nodes=2, trainer__max_epochs=200)
    run, job_id = submit(overrides)
    wait_for_step(run, 3)
    (rank,) = trainers(run, global_rank=1)
    rank.kill()
    failed = wait_for_outcome(run, 0)
    assert (failed["rank"], failed["host"], failed["exit_code"]) == (1, "node2", 128 + signal.SIGKILL), told(run)
    assert failed["reason"] == "killed by SIGKILL"

    wait_for(lambda: run.attempts == 2, what="the second attempt")
    begun = last_step(run)
    wait_for_step(run, begun + 3)
    assert f"running (slurm job {job_id}, node[1-2])" in effnet("runs", "--runs-dir", str(run.path.parent))
    assert "told to checkpoint" in effnet("cancel", str(run.path))
    wait_until_ended(run, job_id, "FAILED")
    assert wait_for_outcome(run, 1)["exit_code"] == 85
    assert job(job_id, "ExitCode") == "85:0"
    assert job(job_id, "Restarts") == "1"
    assert run.latest_checkpoint() == f"step-{final_state(run)['global_step']:09d}"
    assert "nothing runs" in effnet("cancel", str(run.path))


def test_scancel_ends_a_job_after_a_checkpoint(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides
) -> None:
    run, job_id = submit(toy_overrides(trainer__devices=1, trainer__max_epochs=200))
    wait_for_step(run, 3)
    command("scancel", job_id)
    wait_until_ended(run, job_id, "CANCELLED")

    assert wait_for_outcome(run, 0)["reason"] == f"SIGTERM at step {last_step(run)}: checkpointed"
    assert run.latest_checkpoint() == f"step-{last_step(run):09d}"
    assert job(job_id, "Restarts") == "0"


def test_a_mistake_ends_a_job_once_with_93(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides
) -> None:
    run, job_id = submit(toy_overrides(data__train_shards="absent-*.tar", launch__slurm__qos=None))
    wait_until_ended(run, job_id, "FAILED")

    assert job(job_id, "ExitCode") == "93:0"
    assert job(job_id, "Restarts") == "0"
    (outcome,) = run.outcomes()
    assert outcome["exit_class"] == "do_not_retry"
    assert "absent-*.tar" in outcome["reason"]
    status = effnet("status", str(run.path))
    assert "do_not_retry" in status


def test_an_elastic_job_checkpoints_and_goes_on(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides
) -> None:
    elastic = {"launch__slurm__elastic": "true", "launch__slurm__min_nodes": 1}
    run, job_id = submit(toy_overrides(trainer__devices=1, trainer__num_nodes=2, trainer__max_epochs=8, **elastic))
    wait_for_step(run, 3)
    command("scancel", "--signal=USR1", job_id)
    assert wait_for_outcome(run, 0)["exit_code"] == 85, told(run)
    wait_until_ended(run, job_id, "COMPLETED")

    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["interrupted", "done"]
    assert job(job_id, "Restarts") == "1"


def test_every_value_reaches_slurm_as_it_is(tmp_path: Path, toy_overrides: Overrides) -> None:
    pwned, folder = tmp_path / "pwned", "a 'dir' $(x) 日"
    nasty = f"a b\"c'd#e$(touch {pwned})`touch {pwned}`\\f;g\té日%"
    config = tmp_path / "nasty.yaml"
    values = {"comment": nasty.replace("\t", " "), "hold": True, "begin": "now+1hour"}
    launch = {"slurm": {"options": values}, "environment": {"NASTY": nasty + "\nx"}}
    config.write_text(json.dumps({"runs_dir": f"{tmp_path}/{folder}", "launch": launch}))
    overrides = toy_overrides(trainer__devices=1, run_id="job")
    effnet("launch", "slurm", *overrides, "--config", str(config))
    run = RunDirectory(tmp_path / folder / "job")
    job_id = submissions(run)[-1].job_id

    shown = command("scontrol", "show", "job", job_id)
    assert f"Comment={values['comment']}" in shown
    assert f"StdOut={run.launch_dir}/slurm-{job_id}.out" in shown
    assert "JobName=effnet-job-" in shown
    assert "waiting" in effnet("status", str(run.path))
    assert "told to checkpoint" in effnet("cancel", str(run.path))
    wait_for(lambda: job(job_id, "JobState") == "CANCELLED", what="the end of a job that waited")
    assert not pwned.exists()


def test_a_run_whose_job_waits_is_not_trained_here(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides
) -> None:
    overrides = toy_overrides(launch__slurm__options="{hold: true}")
    run, job_id = submit(overrides)
    for words in (["fit"], ["launch", "local"]):
        command = [sys.executable, "-m", "launch.cli", *words, "--run", str(run.path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        assert done.returncode == 1, done.stderr
        assert f"slurm job {job_id}" in done.stderr
        assert "is waiting; end that first" in " ".join(done.stderr.split())
    assert run.attempts == 0


def test_a_job_that_fails_twice_alike_ends_with_93(
    submit: Callable[..., tuple[RunDirectory, str]], toy_overrides: Overrides, tmp_path: Path
) -> None:
    cannot_say_so(RunDirectory(tmp_path / "job"))
    run, job_id = submit(toy_overrides(trainer__devices=1, **FAILS_ALIKE))
    wait_until_ended(run, job_id, "FAILED")

    assert job(job_id, "ExitCode") == "93:0"
    assert job(job_id, "Restarts") == "1"
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["retry", "do_not_retry"]
