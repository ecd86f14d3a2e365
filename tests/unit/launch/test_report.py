"""What a report says of a run, whatever state the run and its files are in."""

import base64
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.problems import ConfigError
from configs.run import RunDirectory
from launch.lock import locked
from launch.reporting.command import write_report
from launch.reporting.record import read_record
from launch.reporting.scales import scale_of, tick_label
from launch.reporting.series import MOST_POINTS, read_metrics, thinned
from launch.reporting.timeline import LONGEST_GAP, clock_of
from launch.reporting.wording import NOTHING, duration, number, size
from tests.unit.launch.commands import effnet
from tests.unit.launch.report_pages import (
    DONE,
    FAILED,
    HEADER,
    STARTED,
    Element,
    leave_error,
    leave_validation,
    new_run,
    parsed,
    picture,
    prediction,
    train_row,
    val_row,
)

EVIL = "</title></td><script>alert(1)</script><img src=x onerror=alert(1)>&amp;\"'"
FAILED_SIGN = "\N{MULTIPLICATION SIGN}failed"
ROWS = [*(train_row(step, loss=10 / step) for step in range(1, 21)), val_row(10, top1=0.5), val_row(20, top1=0.75)]


def page_of(run: RunDirectory) -> Element:
    return parsed(write_report([str(run.path)]).read_text(encoding="utf-8"))


def points(path: Element) -> int:
    return len(re.findall("[ML]", path.attributes["d"]))


# Curves


def test_curves_have_a_point_for_each_row(tmp_path: Path) -> None:
    charts = page_of(new_run(tmp_path / "mine", rows=ROWS)).charts()

    assert list(charts) == [
        "Loss",
        "Top-1 accuracy",
        "Top-5 accuracy",
        "Learning rate",
        "Images per second",
        "Time spent waiting for data",
    ]
    assert [points(group.all("path")[0]) for group in charts["Loss"].all("g")] == [20, 2, 2]
    assert [points(group.all("path")[0]) for group in charts["Learning rate"].all("g")] == [20]
    bands = charts["Top-1 accuracy"].all("rect", "band")
    assert [band.text for band in bands][9] == (
        "epoch 1, step 10\ntraining: 25.00\u202f%\nvalidation: 50.00\u202f%\naveraged: 51.00\u202f%"
    )
    assert len(bands) == 20


def test_loaders_and_machines_have_curves_where_rows_have_them(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    columns = "step,train/loss,data/disk_mb_per_second,data/network_mb_per_second,data/cache_hit_share"
    columns += ",system/node0/cpu_percent,system/node1/cpu_percent,system/disk_free_gb_min,system/disk_free_gb_max"
    columns += ",system/disk_free_gb_worst_node"
    rows = [f"{step},1.0,50.5,20.25,0.5,90,{step},100,{200 + step},3" for step in range(1, 6)]
    run.metrics_file.write_text("\n".join([columns, *rows]) + "\n")
    charts = page_of(run).charts()

    assert list(charts) == [
        "Loss",
        "Shards read, MB per second",
        "Remote shards: in the cache, waited for",
        "Processors at work, %",
        "Free on the run's disk, GB",
    ]
    bands = {title: chart.all("rect", "band")[-1].text.split("\n")[1:] for title, chart in charts.items()}
    assert bands["Shards read, MB per second"] == ["from servers: 20.25", "from disk: 50.5"]
    assert bands["Remote shards: in the cache, waited for"] == ["found in the cache: 50.00\u202f%"]
    assert bands["Processors at work, %"] == ["node 0: 90", "node 1: 5"]
    assert bands["Free on the run's disk, GB"] == ["max: 205", "min: 100"]


def test_a_long_run_has_fewer_points_and_all_its_peaks(tmp_path: Path) -> None:
    losses = [1 + math.sin(step) / 4 for step in range(5000)]
    losses[1234], losses[4321] = 9.0, 0.1

    rows = [train_row(step, loss=loss) for step, loss in enumerate(losses)]
    run = new_run(tmp_path / "mine", rows=rows)
    loss = page_of(run).charts()["Loss"]
    path = loss.all("g")[0].all("path")[0].attributes["d"]

    assert 900 < len(re.findall("[ML]", path)) <= MOST_POINTS
    heights = [float(y) for y in re.findall(r"[ML][\d.]+ ([\d.]+)", path)]
    up = scale_of(losses, 206.0, 10.0)
    assert min(heights) == pytest.approx(up(9.0), abs=0.06)
    assert max(heights) == pytest.approx(up(0.1), abs=0.06)


@given(st.lists(st.floats(), max_size=300), st.integers(min_value=4, max_value=60))
def test_thinning_keeps_order_ends_and_extremes(values: list[float], limit: int) -> None:
    kept = thinned(values, limit)

    assert kept == sorted(set(kept))
    assert len(kept) <= max(limit, 0)
    finite = [value for value in values if math.isfinite(value)]
    shown = [values[place] for place in kept]
    if finite:
        assert {min(finite), max(finite)} <= set(shown)
    if values:
        assert (kept[0], kept[-1]) == (0, len(values) - 1)
    if len(values) <= limit:
        assert len(kept) == len(values)


def test_a_million_rows_make_a_page_of_less_than_two_megabytes(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    with run.metrics_file.open("w") as file:
        file.write("step,epoch,train/loss,lr,throughput/images_per_second\n")
        file.writelines(f"{step},{step / 1000},{step % 977}.5,0.1,{step % 1013}\n" for step in range(1_000_000))

    written = write_report([str(run.path)])

    assert written.stat().st_size < 2_000_000
    page = parsed(written.read_text(encoding="utf-8"))
    assert "epoch 1000, step 999,999" in page.charts()["Loss"].all("rect", "band")[-1].text


def test_a_loss_that_is_not_finite_breaks_the_line_and_is_counted(tmp_path: Path) -> None:
    rows = [train_row(1), train_row(2), train_row(3, loss=math.nan), train_row(4), train_row(5, loss=math.inf)]
    loss = page_of(new_run(tmp_path / "mine", rows=rows)).charts()["Loss"]

    path = loss.all("g")[0].all("path")[0].attributes["d"]
    assert (path.count("M"), path.count("L")) == (2, 1)
    assert "(2 not finite)" in loss.all("ul")[0].text
    assert "training: inf" in loss.all("rect", "band")[-1].text


def test_the_beginnings_of_later_attempts_are_marked(tmp_path: Path) -> None:
    rows = [train_row(1), train_row(2), train_row(3, attempt=2), train_row(4, attempt=2)]
    loss = page_of(new_run(tmp_path / "mine", rows=rows)).charts()["Loss"]

    assert len(loss.all("line", "mark")) == 1
    assert [band.text.rpartition("\n")[2] for band in loss.all("rect", "band")][2] == "attempt 2 begins"


def test_rows_without_epochs_are_drawn_by_step(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    run.metrics_file.write_text("step,train/loss\n10,2.5\n20,1.5\n")

    bands = page_of(run).charts()["Loss"].all("rect", "band")

    assert [band.text for band in bands] == ["step 10\ntraining: 2.5", "step 20\ntraining: 1.5"]


@given(
    st.lists(st.floats(min_value=-1e9, max_value=1e9), min_size=1, max_size=20),
    st.booleans(),
    st.booleans(),
)
def test_an_axis_has_a_place_for_every_value_and_round_numbers(
    values: list[float], from_zero: bool, may_be_log: bool
) -> None:
    up = scale_of(values, 200.0, 0.0, from_zero=from_zero, may_be_log=may_be_log)

    assert all(-0.01 <= up(value) <= 200.01 for value in values)
    ticks = up.ticks()
    assert 1 <= len(ticks) <= 12
    assert all(-0.01 <= up(tick) <= 200.01 for tick in ticks)
    labels = [tick_label(tick, ticks, log=up.log) for tick in ticks]
    assert len(set(labels)) == len(labels) or up.high - up.low < max(map(abs, ticks)) * 1e-9 or up.high < 1e-3


def test_numbers_on_an_axis_are_short() -> None:
    def labels(*values: float, log: bool = False, percent: bool = False) -> list[str]:
        return [tick_label(value, values, log=log, percent=percent) for value in values]

    assert labels(0, 0.002, 0.004) == ["0", "0.002", "0.004"]
    assert labels(0, 50_000, 100_000) == ["0", "50k", "100k"]
    assert labels(1000, 1500, 2000) == ["1,000", "1,500", "2,000"]
    assert labels(0.1, 1, 10, 100_000, log=True) == ["0.1", "1", "10", "100k"]
    assert labels(0, 0.5, 1, percent=True) == ["0\u202f%", "50\u202f%", "100\u202f%"]
    assert scale_of([0.5, 0.6, 900.0], 0, 1, may_be_log=True).log
    assert not scale_of([0.5, 600.0, 900.0], 0, 1, may_be_log=True).log


# Attempts and faults


def test_each_attempt_has_a_row_with_reason_and_culprit(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", rows=ROWS, outcomes=[FAILED, DONE])
    run.environment_file.write_text(
        json.dumps([
            {"attempt": 0, "world_size": 8, "resumed_from": None},
            {"attempt": 1, "world_size": 4, "resumed_from": "/runs/mine/checkpoints/step-000000010"},
        ])
    )  # fmt: skip

    section = page_of(run).section("Attempts and faults")

    rows = section.rows()
    assert rows[1][0] == "0"
    assert rows[1][2:] == [
        "1\xa0min\xa040\xa0s", "8", "the beginning", FAILED_SIGN, "rank 3 on node2, step 14", "killed by SIGKILL"
    ]  # fmt: skip
    assert rows[2][2:] == ["5\xa0min", "4", "step 10", "\N{CHECK MARK}done", NOTHING, "done"]
    bars = section.all("rect", "bar")
    assert [bar.classes[1] for bar in bars] == ["failed", "done"]
    assert "rank 3 on node2, step 14\nkilled by SIGKILL" in bars[0].text
    assert [event.classes for event in section.all("path", "event")] == [["event", "failed"]]


def test_an_attempt_without_an_end_is_at_work_or_has_left_no_word(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", rows=ROWS, outcomes=[FAILED])
    for attempt in (1, 2):
        run.log_dir(attempt).mkdir(parents=True)
        (run.log_dir(attempt) / "rank_00000.log").write_text("x")

    with locked(run):
        rows = page_of(run).section("Attempts and faults").rows()
        page = page_of(run)

    assert [row[5] for row in rows[1:]] == [FAILED_SIGN, "?no word", "▶running"]
    assert "nothing was recorded of its end" in rows[2][7]
    assert "running (process" in page.all("h1")[0].text
    assert "give the command again" in page.all("footer")[0].text
    assert [row[5] for row in page_of(run).section("Attempts and faults").rows()[1:]][-1] == "?no word"


def test_what_ranks_left_rollbacks_and_steps_that_are_not_finite_are_told(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", outcomes=[FAILED, DONE])
    leave_error(run, 0, 3, reason="killed by SIGKILL")
    leave_error(run, 0, 1, reason="lost rank 3\nand more")
    rollback = {"time": STARTED + 50, "before_step": 12, "next_batch": 15, "reason": "step 14: the loss is nan"}
    by_user = {"time": STARTED + 60, "before_step": 11, "resume": "step-000000010"}
    run.rollbacks_file.write_text(json.dumps({"rollbacks": [rollback, by_user]}))
    step = {
        "time": STARTED + 40, "attempt": 0, "step": 14, "what": "loss", "action": "skipped",
        "micro_batches": [{"samples": [{"key": f"img{number}"} for number in range(7)]}],
    }  # fmt: skip
    run.nonfinite_file.write_text(json.dumps(step) + "\n" + '{"time": 17')

    section = page_of(run).section("Attempts and faults")

    rows = section.rows()
    assert ["0", "1 on node2", "14", "lost rank 3\nand more"] in rows
    assert [row[-1] for row in rows if "back to" in row[-1]] == [
        "step 14: the loss is nan: back to a checkpoint before step 12, on with global batch 15",
        "a user went back to a checkpoint before step 11: resume.checkpoint=step-000000010",
    ]
    assert ["14", "loss", "skipped", "0", "img0, img1, img2, img3, img4, and 2 more"] in rows
    assert [event.classes[1] for event in section.all("path", "event")] == [
        "failed", "rollback", "rollback", "nonfinite"
    ]  # fmt: skip


def test_long_pauses_are_drawn_short_and_time_never_runs_back() -> None:
    day = 86_400.0
    clock = clock_of([(0.0, 100.0), (day, day + 300.0), (day + 200.0, day + 201.0)])

    places = [clock(time) for time in (-5.0, 0.0, 50.0, 100.0, day / 2, day, day + 300.0, 9 * day)]
    assert places == sorted(places)
    assert (places[0], places[-1]) == (0.0, pytest.approx(100.0))
    assert places[5] - places[3] == pytest.approx(100 * LONGEST_GAP, rel=0.1)
    assert (places[6] - places[5]) / (places[3] - places[1]) == pytest.approx(3.0)


# Configuration, environment, checkpoints, validation


def test_what_differs_from_the_defaults_comes_first(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", "optimizer.lr=0.125", "name=other")

    section = page_of(run).section("Configuration")

    different, every = section.all("table")
    assert different.rows()[1:] == [
        ["name", '"other"', '"run"'],
        ["data.train_shards", '"train.tar"', "no default"],
        ["data.val_shards", '"val.tar"', "no default"],
        ["optimizer.lr", "0.125", "0.016"],
    ]
    assert ["seed", "0"] in every.rows()
    assert len(every.rows()) > 100


def test_the_environment_is_the_last_attempts_with_what_was_another_before(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", outcomes=[FAILED, DONE])
    entries = [
        {"attempt": attempt, "host": f"node{attempt}", "python": "3.12", "packages": {"torch": "2.15.0"}}
        for attempt in (0, 1)
    ]
    run.environment_file.write_text(json.dumps(entries))
    (run.path / "uncommitted.diff").write_bytes(b"+ a\xff<b>")

    section = page_of(run).section("Environment")

    now, before = section.all("table")
    assert now.rows() == [["host", "node1"], ["python", "3.12"], ["torch", "2.15.0"]]
    assert before.rows() == [["what", "attempt 0", "attempt 1"], ["host", "node0", "node1"]]
    assert section.all("pre")[0].text == "+ a\N{REPLACEMENT CHARACTER}<b>"


def test_checkpoints_are_told_by_their_manifests(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    for step, text in ((10, '{"epo'), (20, json.dumps({"epoch": 2, "files": {"checkpoint.ckpt": {"bytes": 5_100_000}},
                                                       "metrics": {"val/top1": 0.75}}))):  # fmt: skip
        (run.checkpoints / f"step-{step:09d}").mkdir(parents=True)
        (run.checkpoints / f"step-{step:09d}/manifest.json").write_text(text)
    (run.checkpoints / "LATEST").write_text("step-000000020\n")
    (run.checkpoints / "quarantine/step-000000005").mkdir(parents=True)
    (run.checkpoints / "quarantine/step-000000005/reason.txt").write_text("checksum\n")

    rows = page_of(run).section("Checkpoints").rows()

    assert rows[1][0] == "step-000000020 ✓latest"
    assert rows[1][2:6] == ["5.1\xa0MB", "2", "75.00\u202f%", NOTHING]
    assert rows[2][0] == "step-000000010 no readable manifest"
    assert rows[-1] == ["quarantine/step-000000005", "checksum"]


def test_checkpoints_of_the_time_of_an_attempt_stand_in_the_timeline(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", outcomes=[FAILED, DONE])
    for step, time in ((10, STARTED + 50), (20, STARTED + 505), (30, STARTED + 9e6)):
        folder = run.checkpoints / f"step-{step:09d}"
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
        os.utime(folder / "manifest.json", (time, time))

    ticks = page_of(run).section("Attempts and faults").all("rect", "saved")

    assert [tick.text.rpartition(" ")[2] for tick in ticks] == ["step-000000010", "step-000000020"]


def test_validation_shows_the_keys_that_are_there(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    assert "effnet validate mine" in page_of(run).section("Validation").text
    result = {
        "weights": "ema", "image_size": 64, "top1": 0.5, "calibration_error": 0.04, "real": None,
        "per_class": {"samples": [4, 4, 0], "top1": [0.75, 0.25, None]},
        "most_confused": [{"label": 1, "predicted": 0, "samples": 3}],
        "confusion": "validation/confusion.npz:64-1-ema",
    }  # fmt: skip
    found = {"step": 20, "samples": 1797, "val/top1": 0.75, "val/loss": 0.5, "new key": "shown"}
    run.path.joinpath("validation.json").write_text(
        json.dumps({**found, "class_names": ["cat", EVIL, "owl"], "results": [result]})
    )

    section = page_of(run).section("Validation")

    rows = section.rows()
    assert ["raw weights", "75.00\u202f%", NOTHING, "0.5"] in rows
    assert ["samples", "1,797"] in rows
    assert ["new key", "shown"] in rows
    assert ["ema", "64", "50.00\u202f%", "4.00\u202f%"] in rows
    assert [EVIL, " 25.00\u202f%"] in rows
    assert [EVIL, "cat", "3"] in rows
    assert not section.all("img")


def test_a_confusion_matrix_is_drawn_from_the_file_that_is_named(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    matrices = {"few": np.array([[3, 1], [0, 0]]), "many": np.eye(41, dtype=np.int64), "other": np.eye(2)}
    (run.path / "validation").mkdir()
    np.savez_compressed(run.path / "validation/confusion.npz", **matrices)
    np.savez(tmp_path / "outside.npz", **matrices)
    whole = (run.path / "validation/confusion.npz").read_bytes()
    (run.path / "validation/half.npz").write_bytes(whole[: len(whole) // 2])

    def drawn(where: str) -> list[Element]:
        result = {"results": [{"top1": 0.75, "confusion": where}], "class_names": ["cat", "owl"]}
        (run.path / "validation.json").write_text(json.dumps(result))
        return page_of(run).section("Validation").all("svg", "matrix")

    (matrix,) = drawn("validation/confusion.npz:few")
    cells = [*matrix.all("rect", "right"), *matrix.all("rect", "wrong")]
    assert [(cell.text, cell.attributes["fill-opacity"]) for cell in cells] == [
        ("cat, taken for cat: 3 of 4", "0.78"),
        ("owl, taken for owl: 0 of 0", "0"),
        ("cat, taken for owl: 1 of 4", "0.34"),
        ("owl, taken for cat: 0 of 0", "0"),
    ]
    for where in ("confusion.npz:other", "confusion.npz:none", "half.npz:few", "half.npz:many", "none.npz:few"):
        assert drawn(f"validation/{where}") == []
    assert drawn("../outside.npz:few") == []


def squares(matrix: Element, style: str) -> dict[tuple[int, int], float]:
    """(row, column) of squares with how strong they are."""
    return {
        (int(row), int(column)): float(path.attributes["fill-opacity"])
        for path in matrix.all("path", style)
        for column, row in re.findall(r"M(\d+) (\d+)h1v1h-1z", path.attributes["d"])
    }


def test_a_confusion_matrix_of_many_classes_is_drawn_in_squares_of_several(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    for classes, width in ((41, 1), (1000, 8)):
        matrix = np.diag(np.full(classes, 50))
        matrix[10, 10], matrix[10, 30] = 25, 25
        matrix[12, 12] = 0  # without samples
        leave_validation(run, confusion="validation/confusion.npz:m")
        np.savez_compressed(run.path / "validation/confusion.npz", m=matrix)

        section = page_of(run).section("Validation")

        (drawn,) = section.all("svg", "blocks")
        side = math.ceil(classes / width)
        assert drawn.attributes["viewbox"] == f"0 0 {side} {side}"
        right = squares(drawn, "right")
        weaker = {(place // width,) * 2 for place in (10, 12)}
        assert {place for place in right if right[place] == 1} | weaker == {(place, place) for place in range(side)}
        assert right[10 // width, 10 // width] == (0.5 if width == 1 else 1.0)  # the root is of mistakes alone
        assert squares(drawn, "wrong") == {(10 // width, 30 // width): 0.75}
        assert f"{classes:,} classes in the order of their numbers, {width}" in section.text
    assert len((run.path / "report.html").read_bytes()) < 60_000


# Predictions


def test_worst_and_best_predictions_have_their_pictures_in_the_page(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    worst = [prediction("validation/pictures/red.png"), prediction("validation/pictures/blue.jpg", key=None)]
    best = [prediction("validation/pictures/red.png", predicted=0, confidence=1.0)]
    leave_validation(run, ["cat", EVIL], worst=worst, best=best)

    section = page_of(run).section("Predictions")

    images = section.all("img")
    assert [image.attributes["alt"] for image in images] == [
        f"cat, taken for {EVIL} with 75.00\u202f%", f"cat, taken for {EVIL} with 75.00\u202f%",
        "cat, rightly, with 100.00\u202f%",
    ]  # fmt: skip
    starts = ("data:image/png;base64,", "data:image/jpeg;base64,", "data:image/png;base64,")
    for image, start, file in zip(images, starts, ("red.png", "blue.jpg", "red.png"), strict=True):
        assert image.attributes["src"].startswith(start)
        contents = base64.b64decode(image.attributes["src"].removeprefix(start))
        assert contents == (run.path / "validation/pictures" / file).read_bytes()
    cards = section.all("figure")
    assert [card.classes for card in cards] == [["wrong"], ["wrong"], ["right"]]
    assert cards[0].text == f"cat\N{RIGHTWARDS ARROW} {EVIL}, 75.00\u202f%cat: 12.50\u202f%n01/img_7val-00001.tar"
    assert "sample 7" in cards[1].text
    assert cards[2].text == "cat\N{CHECK MARK} 100.00\u202f%n01/img_7val-00001.tar"
    assert "of the averaged weights, 32 pixels" in section.text
    assert "Predictions" in [link.text for link in page_of(run).all("a")]


@pytest.mark.parametrize(
    "where", [None, 7, "none.png", "../outside.png", "validation/pictures", "page.png", "large.png", "a\0b"]
)
def test_a_picture_that_cannot_be_shown_is_said_in_words(where: object, tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    leave_validation(run, worst=[prediction(where, confidence="high", label=None)])  # type: ignore[arg-type]
    (tmp_path / "outside.png").write_bytes(picture("red"))
    (run.path / "page.png").write_text("<script>alert(1)</script>")
    (run.path / "large.png").write_bytes(picture("red") + bytes(300_000))

    section = page_of(run).section("Predictions")

    assert section.all("img") == []
    assert "no picture" in section.all("figure")[0].text


def test_all_pictures_of_a_page_have_a_bound(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    leave_validation(run, worst=[prediction("validation/pictures/some.png")] * 60)
    (run.path / "validation/pictures/some.png").write_bytes(picture("red") + bytes(150_000))

    section = page_of(run).section("Predictions")

    assert len(section.all("figure")) == 50
    assert 19 <= len(section.all("img")) <= 20
    assert "up to 3\N{NO-BREAK SPACE}MB together" in section.text
    assert (run.path / "report.html").stat().st_size < 4_200_000


def test_a_validation_without_predictions_has_no_section_of_them(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    for result in ({}, {"worst": [], "best": None}, {"worst": "all", "best": [1, None]}):
        leave_validation(run, **result)
        assert "Predictions" not in [heading.text for heading in page_of(run).all("h2")]


# Any text, any state


def test_no_text_of_a_run_becomes_markup(tmp_path: Path) -> None:
    name = EVIL.replace("/", "\N{DIVISION SLASH}")
    run = new_run(
        tmp_path / name,
        f"data.train_shards={json.dumps(EVIL)}",
        rows=ROWS,
        outcomes=[{**FAILED, "reason": EVIL, "host": EVIL}],
    )
    leave_error(run, 0, 3, reason=EVIL + "\x00\udc80")
    run.environment_file.write_text(json.dumps([{"attempt": 0, EVIL: EVIL, "packages": {EVIL: EVIL}}]))
    run.path.joinpath("validation.json").write_text(json.dumps({EVIL: EVIL}))
    other = new_run(tmp_path / "other", rows=ROWS)

    page = page_of(run)
    both = parsed(write_report([str(run.path), str(other.path)], out=tmp_path / "both.html").read_text("utf-8"))

    for each in (page, both):
        assert not each.all("script")
        assert not each.all("img")
        assert name in each.text
    assert page.all("h1")[0].text.startswith(name)
    assert f"rank 3 on {EVIL}, step 14" in page.section("Attempts and faults").text
    assert [EVIL, EVIL] in page.section("Environment").rows()


def test_secrets_in_urls_that_an_error_names_are_not_in_the_page(tmp_path: Path) -> None:
    url = "https://me:hunter2@cdn.example.org/a.tar?X-Amz-Signature=hunter2&part=1"
    run = new_run(tmp_path / "mine", outcomes=[{**FAILED, "reason": f"403, url='{url}'"}])
    leave_error(run, 0, 3, reason=f"OSError: {url}\nsas: https://blob/x?sv=1&sig=hunter2")

    text = write_report([str(run.path)]).read_text(encoding="utf-8")

    assert "hunter2" not in text
    assert "403, url='https://…@cdn.example.org/a.tar?X-Amz-Signature=…&part=1'" in parsed(text).text


def test_a_page_needs_nothing_else_and_runs_nothing(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", rows=ROWS, outcomes=[FAILED, DONE])
    leave_validation(run, worst=[prediction("validation/pictures/red.png")])

    text = write_report([str(run.path)]).read_text(encoding="utf-8")

    assert not re.search(r"url\(|@import|<script|https?:|\son\w+=", text)
    targets = re.findall(r'(?:href|src)="([^"]*)"', text)
    assert targets
    assert all(target == "data:," or target.startswith(("#", "data:image/png;base64,")) for target in targets)
    page = parsed(text)
    ids = {section.attributes["id"] for section in page.all("section")}
    assert {f"#{each}" for each in ids} == {link.attributes["href"] for link in page.all("a")}


def test_a_run_that_has_not_begun_has_a_page(tmp_path: Path) -> None:
    page = page_of(new_run(tmp_path / "mine"))

    assert "not begun" in page.all("h1")[0].text
    assert "No metrics yet" in page.section("Curves").text
    assert "No attempt has begun" in page.section("Attempts and faults").text
    assert "None yet" in page.section("Checkpoints").text


@pytest.mark.parametrize(
    "damage", [b"", b"{", b"[1, 2", b"\xff\x00\xfe", b"null", b"7", b'{"attempts": [7, {}]}', b"[[]]"]
)
def test_files_that_are_half_written_or_damaged_are_in_nobodys_way(tmp_path: Path, damage: bytes) -> None:
    run = new_run(tmp_path / "mine", rows=ROWS)
    run.log_dir(0).mkdir(parents=True)
    (run.checkpoints / "step-000000010").mkdir(parents=True)
    for file in (
        run.outcome_file, run.environment_file, run.rollbacks_file, run.nonfinite_file, run.path / "validation.json",
        run.checkpoints / "step-000000010/manifest.json", run.checkpoints / "LATEST",
        run.log_dir(0) / "rank_00000.error.json",
    ):  # fmt: skip
        file.write_bytes(damage)

    page = page_of(run)

    assert len(page.charts()) == 6
    assert len(page.section("Attempts and faults").all("table")[0].rows()) == 2
    assert "step-000000010" in page.section("Checkpoints").text


def test_a_configuration_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine", rows=ROWS)
    run.config_file.write_text("data: {train_shards: <b>, nonsense: 1")

    page = page_of(run)

    assert "config.yaml cannot be read" in page.section("Configuration").text
    assert len(page.charts()) == 6


def test_rows_that_are_half_written_or_odd_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    assert read_metrics(file).steps.tolist() == []
    file.write_text(f"{HEADER}\n{train_row(1)}\n1,2,3\nx{train_row(2)}\n{train_row(3)}\n{train_row(4)[:-9]}")
    assert read_metrics(file).steps.tolist() == [1, 2, 3]
    file.write_text(f"{HEADER}\n{train_row(1)}\n{val_row(2, top1=0.5)[:-1]}")

    metrics = read_metrics(file)

    assert metrics.steps.tolist() == [1]
    assert metrics.columns["train/loss"].values.tolist() == [1.0]
    file.write_bytes(b"\xff\x00\n\n,,,\n")
    assert read_metrics(file).steps.tolist() == []


@pytest.mark.parametrize(
    ("place", "damage"), [("step", "1" * 25), ("epoch", "inf"), ("attempt", "9" * 25), ("train/top1", "1e308")]
)
def test_numbers_that_no_training_has_are_in_nobodys_way(place: str, damage: str, tmp_path: Path) -> None:
    cells = train_row(2).split(",")
    cells[HEADER.split(",").index(place)] = damage

    page = page_of(new_run(tmp_path / "mine", rows=[train_row(1), ",".join(cells), train_row(3)]))

    assert "Loss" in page.charts()


# Several runs


def test_runs_are_compared_by_curves_settings_and_figures(tmp_path: Path) -> None:
    first = new_run(tmp_path / "first", "optimizer.lr=0.125", rows=ROWS, outcomes=[FAILED, DONE])
    second = new_run(tmp_path / "second", "optimizer.lr=0.25", rows=[*ROWS[:20], val_row(20, top1=0.9)])
    third = new_run(tmp_path / "third", "optimizer.lr=0.25")

    file = write_report([str(run.path) for run in (first, second, third)], out=tmp_path / "all.html")
    page = parsed(file.read_text(encoding="utf-8"))

    charts = page.charts()
    assert [group.classes for group in charts["Loss: training"].all("g")] == [["line-a"], ["line-b"]]
    assert [points(group.all("path")[0]) for group in charts["Top-1 accuracy: averaged"].all("g")] == [2, 1]
    assert page.section("Configuration that differs").rows() == [
        ["setting", "first", "second", "third"],
        ["optimizer.lr", "0.125", "0.25", "0.25"],
    ]
    figures = page.section("Figures").rows()
    assert ["Top-1", "75.00\u202f%", "90.00\u202f%", NOTHING] in figures
    assert ["Best: Top-1", "75.00\u202f% at step 20", "90.00\u202f% at step 20", NOTHING] in figures
    assert page.section("Attempts").rows()[1][:3] == ["first", "\N{CHECK MARK}done", "2"]


def test_equal_runs_differ_in_nothing(tmp_path: Path) -> None:
    runs = [str(new_run(tmp_path / name, f"run_id={name}").path) for name in ("first", "second")]

    page = parsed(write_report(runs, out=tmp_path / "both.html").read_text(encoding="utf-8"))

    assert "All settings are the same" in page.section("Configuration that differs").text


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    runs = [str(new_run(tmp_path / folder / "mine").path) for folder in ("old", "new")]

    page = parsed(write_report(runs, out=tmp_path / "both.html").read_text(encoding="utf-8"))

    assert [row[0] for row in page.section("Attempts").rows()[1:]] == runs


# The command


def test_the_command_writes_the_page_into_the_run_and_says_where(tmp_path: Path) -> None:
    run = new_run(tmp_path / "runs/mine", rows=ROWS)

    done = effnet("report", "mine", cwd=tmp_path)
    beside = effnet("report", "mine", "--out", "page.html", cwd=tmp_path)
    unknown = effnet("report", "mine", "yours", cwd=tmp_path)
    nowhere = effnet("report", "mine", "--out", "no/page.html", cwd=tmp_path)

    assert (done.returncode, done.stdout) == (0, "runs/mine/report.html\n"), done.stderr
    assert "mine" in parsed((run.path / "report.html").read_text(encoding="utf-8")).all("h1")[0].text
    assert (beside.returncode, (tmp_path / "page.html").is_file()) == (0, True)
    assert (unknown.returncode, nowhere.returncode) == (93, 93)
    assert "yours" in unknown.stderr
    assert "--out" in nowhere.stderr


@pytest.mark.parametrize("out", ["mine/config.yaml", "mine", "folder.html", "no/page.html", "/proc/page.html"])
def test_a_page_goes_only_where_a_page_can_be(out: str, tmp_path: Path) -> None:
    run = new_run(tmp_path / "mine")
    (tmp_path / "folder.html").mkdir()
    before = run.config_file.read_text()

    with pytest.raises(ConfigError, match="--out"):
        write_report([str(run.path)], out=tmp_path / out)

    assert run.config_file.read_text() == before


def test_more_runs_than_can_be_told_apart_are_refused() -> None:
    with pytest.raises(ConfigError, match="up to 8 runs"):
        write_report([str(number) for number in range(9)])


def test_figures_are_worded_for_people() -> None:
    said = [duration(seconds) for seconds in (0, 59.6, 3600, 7500, 90_000, None, math.nan)]
    assert [each.replace("\xa0", " ") for each in said] == [
        "0 s",
        "1 min",
        "1 h",
        "2 h 5 min",
        "1 d 1 h",
        NOTHING,
        NOTHING,
    ]
    assert [number(value) for value in (0.0, 12.0, 0.123456, 1234567.0, math.inf, None)] == [
        "0", "12", "0.1235", "1,234,567", "inf", NOTHING
    ]  # fmt: skip
    assert [size(count).replace("\xa0", " ") for count in (0, 999, 5_096_949, 3e15)] == [
        "0 B",
        "999 B",
        "5.1 MB",
        "3e+03 TB",
    ]


def test_a_record_is_read_without_anything_but_a_configuration(tmp_path: Path) -> None:
    record = read_record(new_run(tmp_path / "mine"))

    assert (record.attempts, record.checkpoints, record.nonfinite, record.config_fault) == ([], [], [], "")
