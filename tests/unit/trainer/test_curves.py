import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from configs.run import RunDirectory
from trainer.curves import COLORS, PANELS, draw_curves

HEADER = "epoch,lr,step,throughput/images_per_second,train/loss,train/top1,val/ema_loss,val/ema_top1,val/loss,val/top1"


def write_metrics(file: Path, *, epochs: int = 20, validation: bool = True) -> None:
    """Rows as a run writes them: training and validation in rows of their own, the average from the second epoch on."""
    lines = [HEADER]
    for epoch in range(1, epochs + 1):
        for part in (0.5, 1.0):
            at = epoch - 1 + part
            falling = math.exp(-at / 8)
            lines.append(f"{at},{0.01 * falling},{10 * at},{900 + 40 * math.sin(at)},{2 * falling},{1 - falling},,,,")
        if validation:
            average = f"{1.9 * falling},{1 - 0.9 * falling}" if epoch > 1 else ","
            lines.append(f"{epoch},,{10 * epoch},,,,{average},{2.1 * falling},{1 - 1.1 * falling}")
    file.write_text("\r\n".join(lines) + "\r\n")


def drawn(file: Path, tmp_path: Path) -> NDArray[np.uint8]:
    """Pixels (height, width, RGB) of the picture."""
    target = tmp_path / "curves.png"
    draw_curves(file, target)
    with Image.open(target) as picture:
        assert picture.format == "PNG"
        assert picture.size == (1320, 840)
        return np.asarray(picture.convert("RGB"))


def panel(pixels: NDArray[np.uint8], number: int) -> NDArray[np.uint8]:
    """One of the four: from the left above to the right below."""
    height, width = pixels.shape[0] // 2, pixels.shape[1] // 2
    row, column = divmod(number, 2)
    return pixels[row * height : (row + 1) * height, column * width : (column + 1) * width]


def count(pixels: NDArray[np.uint8], color: str) -> int:
    return int((np.abs(pixels.astype(int) - np.array(to_rgb(color)) * 255).max(2) < 12).sum())


def test_four_panels_are_drawn_from_metrics_with_gaps(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv")
    pixels = drawn(tmp_path / "metrics.csv", tmp_path)

    for number, (_, names) in enumerate(PANELS):
        lines = [count(panel(pixels, number), color) for color in COLORS]
        assert all(drawn > 200 for drawn in lines[: len(names)]), (number, lines)
        assert not any(lines[len(names) :])


def test_what_was_not_measured_is_left_out(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv", validation=False)
    pixels = drawn(tmp_path / "metrics.csv", tmp_path)

    loss = [count(panel(pixels, 0), color) for color in COLORS]
    assert loss[0] > 200
    assert loss[1:] == [0, 0]


def test_a_loss_that_is_no_number_does_not_stop_the_drawing(tmp_path: Path) -> None:
    write_metrics(tmp_path / "metrics.csv")
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("21.0,0.001,210,900,nan,0.5,,,,\r\n21.5,0.001,215,900,inf,0.5,,,,\r\n")

    assert count(panel(drawn(tmp_path / "metrics.csv", tmp_path), 0), COLORS[0]) > 200


@pytest.mark.parametrize("content", ["", HEADER + "\r\n", HEADER + "\r\n1.0,0.1,10,900,2.0,0.5,,,,\r\n"])
def test_few_rows_or_none_are_enough(content: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(content)

    assert drawn(tmp_path / "metrics.csv", tmp_path).min() < 100  # at least the axes


def test_every_run_leaves_its_curves(trained: RunDirectory) -> None:
    with Image.open(trained.path / "curves.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))

    for number, (_, names) in enumerate(PANELS):
        for color in COLORS[: len(names)]:
            assert count(panel(pixels, number), color) > 20, (number, color)
