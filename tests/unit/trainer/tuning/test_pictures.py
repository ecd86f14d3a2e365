"""A sweep as a picture."""

from pathlib import Path

from PIL import Image

from trainer.tuning.curve import Suggestion
from trainer.tuning.pictures import draw_sweep, sparkline


def test_a_line_of_text_goes_from_the_lowest_bar_to_the_highest() -> None:
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    assert sparkline([3, 3]) == "▁▁"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(1000)))) == 60


def test_divergence_does_not_press_what_came_before_it_flat() -> None:
    assert sparkline([4, 4, 2, 1, 1e6]) == "▅▅▂▁█"


def test_the_picture_shows_curve_suggestion_and_configured_rate(tmp_path: Path) -> None:
    lrs, losses = [1e-3, 1e-2, 1e-1, 1], [4.0, 3.0, 2.0, 50.0]
    found = Suggestion(lr=1e-2, lowest_lr=1e-1)
    draw_sweep(tmp_path / "with.png", lrs, losses, losses, suggestion=found, configured=0.5)
    draw_sweep(tmp_path / "without.png", lrs, losses, losses, suggestion=None, configured=0.5)

    colours = [
        {colour for _, colour in Image.open(tmp_path / name).convert("RGB").getcolors(1 << 20) or ()}
        for name in ("with.png", "without.png")
    ]
    curve, suggestion, configured = (0x42, 0x69, 0xD0), (0x3C, 0xA9, 0x51), (0xEF, 0xB1, 0x18)
    assert {curve, suggestion, configured} <= colours[0]
    assert {curve, configured} <= colours[1]
    assert suggestion not in colours[1]
