from pathlib import Path

import pytest

from configs.run import QUIET
from tests.unit.launch.commands import MINIMAL, effnet


def test_a_dry_run_says_what_a_launch_here_goes_on_as(tmp_path: Path) -> None:
    words = ["--config", "configs/experiment/digits.yaml", "run_id=mine", "trainer.accelerator=cpu"]
    done = effnet("launch", "local", *words, "--max-restarts", "4", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"env PYTHONPATH={tmp_path}/runs/mine/launch/code-")
    assert done.stdout.endswith("-m launch.cli fit --run runs/mine --max-restarts=4\n")
    assert list(tmp_path.iterdir()) == []


JOB = [*MINIMAL, "trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "tracking.mode=disabled"]


@pytest.mark.parametrize(
    ("engine", "sent"), [("local", "-m launch.cli fit --run {run} --quiet\n"), ("slurm", f"\nexport {QUIET}=1\n")]
)
def test_a_quiet_launch_has_the_job_show_no_progress(engine: str, sent: str, tmp_path: Path) -> None:
    words = ["launch", engine, "--dry-run", *JOB, "run_id=mine"]
    plain, quiet = effnet(*words, cwd=tmp_path), effnet(*words, "--quiet", cwd=tmp_path)

    assert (plain.returncode, quiet.returncode) == (0, 0), plain.stderr + quiet.stderr
    sent = sent.format(run="runs/mine")
    assert sent not in plain.stdout
    assert sent in quiet.stdout


def test_pods_print_their_ranks_logs_and_no_progress_that_could_be_left_out(tmp_path: Path) -> None:
    done = effnet("launch", "kubernetes", "--dry-run", "--quiet", *JOB, cwd=tmp_path)
    assert done.returncode == 2
    assert "No such option: --quiet" in done.stderr
