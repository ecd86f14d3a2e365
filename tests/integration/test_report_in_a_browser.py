"""A report as Chromium shows it: on a wide screen and a phone, light and dark."""

from pathlib import Path

import pytest
from PIL import Image

from launch.reporting.command import write_report
from tests.browser import Browser, chromium
from tests.unit.launch.report_pages import DONE, FAILED, leave_error, new_run, train_row, val_row

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


def test_a_screenshot_shows_the_lines(browser: Browser, page: Path, tmp_path: Path) -> None:
    for dark, paper, line in ((False, PAPER, (0, 114, 178)), (True, DARK_PAPER, (86, 180, 233))):
        file = tmp_path / f"{dark}.png"
        browser.screenshot(page, file, width=WIDE, height=1600, dark=dark)
        with Image.open(file) as image:
            colours = {colour: count for count, colour in image.convert("RGB").getcolors(2**24)}
        assert max(colours, key=colours.__getitem__) in (paper, (255, 255, 255), (27, 31, 35))
        assert colours[paper] > 100_000
        assert colours[line] > 500
