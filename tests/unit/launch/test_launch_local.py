from pathlib import Path

from tests.unit.launch.commands import effnet


def test_a_dry_run_says_what_a_launch_here_goes_on_as(tmp_path: Path) -> None:
    words = ["--config", "configs/experiment/digits.yaml", "run_id=mine", "trainer.accelerator=cpu"]
    done = effnet("launch", "local", *words, "--max-restarts", "4", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"env PYTHONPATH={tmp_path}/runs/mine/launch/code-")
    assert done.stdout.endswith("-m launch.cli fit --run runs/mine --max-restarts=4\n")
    assert list(tmp_path.iterdir()) == []
