"""A report as Chromium shows it: on a wide screen and a phone, light and dark."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from launch.reporting.command import write_report
from tests.browser import Browser, chromium
from tests.unit.launch.report_pages import (
    DONE,
    FAILED,
    leave_error,
    leave_validation,
    new_run,
    prediction,
    train_row,
    val_row,
)

PAPER, DARK_PAPER = (251, 251, 249), (20, 23, 26)
WIDE, PHONE = 1200, 360
READABLE_PX = 9.5
LONG = "a_reason_without_a_single_space_in_it_" * 12
MEASURE = """(page, view) => {
  const boxes = (what) => [...page.querySelectorAll(what)].map((each) => each.getBoundingClientRect());
  const style = (what) => view.getComputedStyle(page.querySelector(what));
  const text = page.querySelector(".chart text");
  const scale = boxes(".chart")[0].width / 480;
  const cut = [...page.querySelectorAll(".chart text")].filter((each) => {
    const box = each.closest("svg").getBoundingClientRect(), own = each.getBoundingClientRect();
    return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
  });
  return {
    overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
    columns: new Set(boxes(".charts figure").map((box) => Math.round(box.left))).size,
    tick_px: parseFloat(view.getComputedStyle(text).fontSize) * scale,
    cut: cut.map((each) => each.textContent),
    paper: style("body").backgroundColor, ink: style("body").color, line: style(".line-a path").stroke,
    card_rows: style(".stacked tr").display, title: page.querySelector(".band title").textContent,
    pictures: [...page.querySelectorAll(".gallery img")].map((each) => each.naturalWidth),
    picture_px: boxes(".gallery img").map((box) => Math.min(box.width, box.height)),
    gallery_columns: new Set(boxes(".gallery figure").map((box) => Math.round(box.left))).size,
    caption: style(".gallery .wrong span").color, small_px: parseFloat(style(".gallery small").fontSize),
    matrix_px: boxes(".matrix")[0].width, square: style(".matrix .wrong").fill,
  };
}"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return chromium(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [train_row(step, loss=1e5 / step) for step in range(1, 200)] + [val_row(100, top1=0.5)]
    run = new_run(
        tmp_path_factory.mktemp("runs") / ("a_long_name_" * 8), rows=rows, outcomes=[{**FAILED, "reason": LONG}, DONE]
    )
    leave_error(run, 0, 3, reason=LONG)
    worst = [prediction(f"validation/pictures/{name}", shard=LONG) for name in 4 * ("red.png", "blue.jpg")]
    leave_validation(run, [LONG, "cat"], worst=worst, confusion="validation/confusion.npz:m")
    np.savez_compressed(run.path / "validation/confusion.npz", m=np.ones((300, 300), dtype=np.int64))
    return write_report([str(run.path)])


@pytest.mark.parametrize("width", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_page_is_readable(browser: Browser, page: Path, width: int, dark: bool) -> None:
    found = browser.ask(page, MEASURE, width=width, dark=dark)

    assert found["overflow"] == 0
    assert found["columns"] == (2 if width == WIDE else 1)
    assert found["tick_px"] > READABLE_PX
    assert found["cut"] == []
    assert found["card_rows"] == ("table-row" if width == WIDE else "block")
    assert found["paper"] == f"rgb{DARK_PAPER if dark else PAPER}"
    assert (found["ink"], found["line"]) == (
        ("rgb(230, 232, 230)", "rgb(86, 180, 233)") if dark else ("rgb(29, 35, 41)", "rgb(0, 114, 178)")
    )
    assert found["title"].startswith("epoch 0.1, step 1\n")
    assert found["pictures"] == 4 * [32, 224]
    assert min(found["picture_px"]) > 120
    assert found["gallery_columns"] == (6 if width == WIDE else 2)
    assert found["small_px"] > READABLE_PX
    assert (found["caption"], found["square"]) == (
        ("rgb(243, 154, 91)", "rgb(240, 136, 62)") if dark else ("rgb(184, 74, 0)", "rgb(213, 94, 0)")
    )
    assert 300 < found["matrix_px"] <= 560


def test_a_screenshot_shows_the_lines(browser: Browser, page: Path, tmp_path: Path) -> None:
    for dark, paper, line in ((False, PAPER, (0, 114, 178)), (True, DARK_PAPER, (86, 180, 233))):
        file = tmp_path / f"{dark}.png"
        browser.screenshot(page, file, width=WIDE, height=1600, dark=dark)
        with Image.open(file) as image:
            colours = {colour: count for count, colour in image.convert("RGB").getcolors(2**24)}
        assert max(colours, key=colours.__getitem__) in (paper, (255, 255, 255), (27, 31, 35))
        assert colours[paper] > 100_000
        assert colours[line] > 500


def test_a_screenshot_shows_the_pictures(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.screenshot(page, tmp_path / "all.png", width=WIDE, height=6000)
    with Image.open(tmp_path / "all.png") as image:
        colours = {colour: count for count, colour in image.convert("RGB").getcolors(2**24)}
    assert colours[255, 0, 0] > 4 * 120**2
    assert colours[0, 0, 254] > 4 * 120**2  # a JPEG's blue
