"""What status, runs and logs say, from what a run left on disk."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from configs.rank_records import rank_log
from configs.run import RunDirectory
from launch.glance import progress, sparkline
from launch.inspection import show_runs, state
from launch.ledger import Submission, record, submissions
from launch.lock import locked
from launch.reading_logs import show_logs
from tests.unit.launch.commands import MINIMAL, effnet

METRICS = """\
step,throughput/images_per_second,val/ema_top1,val/top1
10,300.5,,
20,310.5,,
20,,0.5,0.75
30,,0.625,0.25
"""


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs/mine")
    run.create()
    run.launch_dir.mkdir()
    run.config_file.touch()
    return run


def printed(run: RunDirectory, rank: int | None = None, attempt: int | None = None) -> list[str]:
    lines: list[str] = []
    show_logs(run, lines.append, rank=rank, attempt=attempt, follow=False, active=lambda: False)
    return lines


def test_progress_is_read_from_the_metrics(run: RunDirectory) -> None:
    assert (progress(run).step, progress(run).best) == (0, None)
    run.metrics_file.write_text(METRICS + "4")  # a row that is being written

    facts = progress(run)

    assert (facts.step, facts.images_per_second, facts.best) == (30, 310.5, ("val/ema_top1", 0.625))


def test_of_a_large_file_the_validations_and_the_newest_row_are_found(run: RunDirectory) -> None:
    names = ["epoch", "step", "throughput/images_per_second", "train/loss", "val/ema_top1", "val/top1"]
    lines = [",".join(names)]
    for step in range(1, 5001):
        lines.append(f"{step / 100},{step},{step}.5,{5000 - step},,")
        if step % 500 == 0:
            lines.append(f"{step / 100},{step},,,{step / 10000},{1 - step / 10000}")
    run.metrics_file.write_text("\r\n".join(lines) + "\r\n5001,9")

    facts = progress(run)
    assert (facts.step, facts.images_per_second) == (5000, 5000.5)
    assert facts.best == ("val/ema_top1", 0.5)
    assert list(facts.curve) == [step / 10000 for step in range(500, 5001, 500)]

    rows = [line for line in lines if line.endswith(",,")]
    run.metrics_file.write_text("\n".join([lines[0], *rows]) + "\n")
    losses = progress(run)
    assert (losses.step, losses.best) == (5000, None)
    assert len(losses.curve) == 64
    assert list(losses.curve) == sorted(losses.curve, reverse=True)


@pytest.mark.parametrize(
    "damaged", [b"", b"\n", b"\xff\xfe,step\n1,2\n", b"step,val/top1\nx,y\n1\n,,\n", b"step,val/top1\n3,nan\n"]
)
def test_a_damaged_file_hides_no_run(damaged: bytes, run: RunDirectory) -> None:
    run.metrics_file.write_bytes(damaged)
    assert progress(run).best is None


def test_a_sparkline_has_the_means_of_its_parts() -> None:
    assert sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8) == "▁▂▃▄▅▆▇█"
    assert sparkline([0, 0, 7, 7, float("nan"), 3, 4], 3) == "▁█▅"
    assert sparkline([0.5, 0.5], 8) == "▁▁"
    assert sparkline([float("nan")], 8) == sparkline([], 8) == ""


def test_runs_have_sparklines_on_a_terminal_that_can_show_them_and_nowhere_else(run: RunDirectory) -> None:
    run.metrics_file.write_text("step,val/top1\n1,0.1\n2,0.3\n3,0.2\n")

    def shown(width: int, *, encoding: str = "utf-8", terminal: bool = True) -> list[str]:
        file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        show_runs(run.path.parent, Console(file=file, width=width, force_terminal=terminal, color_system=None))
        file.flush()
        return file.buffer.getvalue().decode(encoding).splitlines()  # type: ignore[attr-defined]

    for width in (80, 160):
        (line,) = (line for line in shown(width) if "mine" in line)
        assert "▁█▅" in line
        assert len(line) <= width
    assert "▁" not in "".join(shown(80, encoding="ascii"))
    (line,) = (line for line in shown(20, terminal=False) if "mine" in line)  # a line a run, for other programs
    assert "val/top1 0.3000" in line
    assert "▁" not in line


def test_the_state_is_the_locks_or_the_last_outcomes(run: RunDirectory) -> None:
    assert state(run) == "not begun"
    run.record_outcome({"attempt": 0, "exit_class": "interrupted", "rank": None, "reason": "SIGTERM"})
    assert state(run) == "interrupted"
    with locked(run):
        assert state(run).startswith("running (process ")


def test_a_job_of_a_cluster_that_is_out_of_reach_does_not_keep_status_from_answering(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    record(run, Submission(time="2026-01-01T00:00:00+00:00", engine="slurm", job_id="7", artefact="slurm.sh"))

    assert [submission.job_id for submission in submissions(run)] == ["7"]
    assert state(run) == "not begun"
    cancelled = effnet("cancel", "mine", cwd=run.path.parents[1], PATH="/nowhere")
    assert cancelled.returncode == 93
    assert "no squeue here" in cancelled.stderr


def test_fit_leaves_a_run_alone_whose_job_it_cannot_ask_for(run: RunDirectory) -> None:
    record(run, Submission(time="2026-01-01T00:00:00+00:00", engine="slurm", job_id="7", artefact="slurm.sh"))
    fitted = effnet("fit", *MINIMAL, "run_id=mine", cwd=run.path.parents[1], PATH="/nowhere")
    assert fitted.returncode == 93
    assert "slurm job 7" in fitted.stderr
    assert "submissions.jsonl" in fitted.stderr
    assert run.attempts == 0


def test_status_and_runs_print_tables(run: RunDirectory) -> None:
    run.metrics_file.write_text(METRICS)
    run.record_outcome({"attempt": 0, "exit_class": "retry", "rank": 3, "host": "node2", "reason": "killed [by] x"})

    status = effnet("status", "mine", cwd=run.path.parents[1])
    listed = effnet("runs", cwd=run.path.parents[1])

    assert (status.returncode, listed.returncode) == (0, 0), status.stderr + listed.stderr
    assert "retry on rank 3 (node2): killed [by] x" in status.stdout
    assert "0.6250" in status.stdout
    assert "val/ema_top1 0.6250" in listed.stdout


def test_lines_of_all_ranks_come_by_time_and_what_has_none_stays_behind_its_line(run: RunDirectory) -> None:
    for attempt, rank, text in (
        (0, 0, "2026-01-01 00:00:00,000 INFO effnet: old\n"),
        (1, 0, "2026-01-01 00:00:01,000 INFO effnet: a\n2026-01-01 00:00:03,500 ERROR effnet: c\nTraceback\n"),
        (1, 1, "2026-01-01 00:00:02,000 INFO effnet: b\n2026-01-01 00:00:04,000 INFO effnet: d, half a l"),
    ):
        run.log_dir(attempt).mkdir(parents=True, exist_ok=True)
        rank_log(run.log_dir(attempt), rank).write_text(text)

    assert [line.replace("2026-01-01 00:00:0", "") for line in printed(run)] == [
        "0: 1,000 INFO effnet: a",
        "1: 2,000 INFO effnet: b",
        "0: 3,500 ERROR effnet: c",
        "0: Traceback",
        "1: 4,000 INFO effnet: d, half a l",
    ]
    assert len(printed(run, rank=1)) == 2
    assert printed(run, attempt=0) == ["0: 2026-01-01 00:00:00,000 INFO effnet: old"]
    assert printed(RunDirectory(run.path / "absent")) == []
