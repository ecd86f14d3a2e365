"""Text as a picture: which character is where, what is random in training, and fonts that lack characters."""

import random
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest

from configs.problems import ConfigError
from configs.schema import Text
from datamodules.images.decoding import BadSampleError
from datamodules.text.drawing import TextDrawing
from datamodules.text.glyphs import Glyphs, Pixels

DEJAVU = str(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf")
LONG = " ".join(f"word{i}" for i in range(100))


def drawn(text: str, side: int = 64, *, seed: int | None = None, **settings: Any) -> Pixels:
    """A picture; with a seed, as in training."""
    if seed is not None:
        random.seed(seed)
    return TextDrawing(Text(**settings), side, randomly=seed is not None).draw(text)


def cell(picture: Pixels, row: int, column: int, *, height: int, width: int) -> Pixels:
    return picture[row * height : (row + 1) * height, column * width : (column + 1) * width]


def test_each_character_has_a_cell_line_after_line() -> None:
    picture = drawn("abc a", rows=4)  # cells of 16x16

    cells = {(row, column): cell(picture, row, column, height=16, width=16) for row in range(4) for column in range(4)}
    a, b, c = (cells[0, column] for column in range(3))
    assert all(each.max() > 200 for each in (a, b, c))
    assert not np.array_equal(a, b)
    assert not np.array_equal(b, c)
    np.testing.assert_array_equal(cells[1, 0], a)  # the fifth character
    blank = [place for place, each in cells.items() if not each.any()]
    assert blank == [
        (0, 3),
        *((1, column) for column in range(1, 4)),
        *((row, column) for row in (2, 3) for column in range(4)),
    ]


def test_lines_that_are_kept_begin_where_they_begin() -> None:
    picture = drawn("a\n\n  a", rows=4, columns=8, line_breaks=True)
    a = cell(picture, 0, 0, height=16, width=8)
    assert a.any()
    np.testing.assert_array_equal(cell(picture, 2, 2, height=16, width=8), a)
    a[:] = 0
    cell(picture, 2, 2, height=16, width=8)[:] = 0
    assert not picture.any()


def test_what_is_too_long_is_cut_at_the_end() -> None:
    np.testing.assert_array_equal(drawn(LONG, rows=4), drawn(LONG[:16], rows=4))
    np.testing.assert_array_equal(
        drawn(LONG.replace(" ", "\n"), rows=4, columns=8, line_breaks=True),
        drawn("word0\nword1\nword2\nword3", rows=4, columns=8, line_breaks=True),
    )


def test_wide_letters_are_squeezed_into_their_cell_and_none_is_cut_off() -> None:
    narrow, wide = (Glyphs(None, height=32, width=width) for width in (8, 40))
    for character in "WM@gj|Å":
        ink = [glyphs.page(np.array([glyphs.numbers(character)])).sum(axis=1).nonzero()[0] for glyphs in (narrow, wide)]
        assert abs(int(ink[0][0]) - int(ink[1][0])) <= 1  # as high as it is where there is room
        assert abs(int(ink[0][-1]) - int(ink[1][-1])) <= 1
    whole, squeezed = (glyphs.page(np.array([glyphs.numbers("W")])) for glyphs in (wide, narrow))
    assert (whole[:, 0].max(), whole[:, -1].max()) == (0, 0)
    assert squeezed.any(axis=0).all()


def test_a_picture_whose_side_no_cell_divides_has_its_text_in_the_middle() -> None:
    picture = drawn("W" * 9, 67, rows=3)  # cells of 22x22, and 1 pixel more
    np.testing.assert_array_equal(picture[:66, :66], drawn("W" * 9, 66, rows=3))
    assert picture.shape == (67, 67)


def test_evaluation_draws_nothing_random() -> None:
    state = random.getstate()
    settings: dict[str, Any] = {"rows": 4, "random_scale": (0.5, 2), "random_shift": 1}
    pictures = [drawn(LONG, **settings) for _ in range(3)]
    assert random.getstate() == state
    for each in pictures:
        np.testing.assert_array_equal(each, drawn(LONG, rows=4))


def test_training_begins_a_long_text_with_any_word_and_fills_the_square() -> None:
    shape = {"rows": 2, "columns": 8}
    words = [at for at in range(len(LONG)) if at == 0 or LONG[at - 1] == " "]
    pictures = {at: drawn(LONG[at:], **shape) for at in words}
    starts = set()
    for seed in range(400):
        picture = drawn(LONG, seed=seed, **shape)
        np.testing.assert_array_equal(picture, drawn(LONG, seed=seed, **shape))
        starts.add(next(at for at, each in pictures.items() if np.array_equal(picture, each)))
    assert starts > {0, LONG.index("word97")}
    assert len(starts) > 80
    assert max(starts) <= len(LONG) - 16
    for seed in range(20):
        np.testing.assert_array_equal(drawn("short", seed=seed, rows=4), drawn("short", rows=4))
        np.testing.assert_array_equal(drawn(LONG, seed=seed, rows=4, random_start=False), drawn(LONG, rows=4))


def test_training_begins_a_text_without_spaces_anywhere() -> None:
    text = "".join(chr(number) for number in range(0x0100, 0x0150))
    pictures = [drawn(text[i:], rows=4, font=DEJAVU) for i in range(65)]
    found = {
        next(i for i in range(65) if np.array_equal(pictures[i], drawn(text, seed=seed, rows=4, font=DEJAVU)))
        for seed in range(300)
    }
    assert len(found) > 50


def test_training_begins_kept_lines_with_any_line_and_fills_the_square() -> None:
    lines, settings = LONG.split(" "), {"rows": 4, "columns": 8, "line_breaks": True}
    pictures = [drawn("\n".join(lines[first : first + 4]), **settings) for first in range(97)]
    found = set()
    for seed in range(300):
        picture = drawn("\n".join(lines), seed=seed, **settings)
        found |= {first for first, each in enumerate(pictures) if np.array_equal(picture, each)}
    assert {0, 96} < found
    assert len(found) > 80


def test_training_scales_letters_and_moves_them() -> None:
    heights, places = set(), set()
    for seed in range(100):
        rows = drawn("W", seed=seed, rows=4, random_scale=(0.5, 1.5)).any(axis=1).nonzero()[0]
        heights.add(len(rows))
        moved = drawn("." * 16, seed=seed, rows=4, random_shift=0.25)
        places.add(tuple(int(axis[0]) for axis in moved.nonzero()))
    still = tuple(int(axis[0]) for axis in drawn("." * 16, rows=4).nonzero())
    assert max(heights) >= 2.5 * min(heights)
    for place, at in zip(zip(*places, strict=True), still, strict=True):
        assert {min(place) - at, max(place) - at} == {-4, 4}  # a quarter of 16 pixels


def test_a_font_that_lacks_the_characters_makes_a_bad_sample() -> None:
    with pytest.raises(
        BadSampleError, match=r"the font has no '文', nor most of its other characters: set data.text.font"
    ):
        drawn("文字 a", rows=4)
    assert drawn("文字 and 字 more of what it has", rows=8).any()


def test_a_font_file_has_its_own_shapes() -> None:
    picture = drawn("Ελληνικά", rows=4, font=DEJAVU)
    assert picture.any()
    assert not np.array_equal(drawn("letters", rows=4, font=DEJAVU), drawn("letters", rows=4))


@pytest.mark.parametrize("font", ["no-such.ttf", __file__])
def test_a_font_that_cannot_be_read_is_the_users_mistake(font: str) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.text\.font\n +received +\".*\n +accepted +a TrueType or OpenType file"
    ):
        TextDrawing(Text(font=font), 64, randomly=False)


def test_cells_too_small_for_a_letter_are_the_users_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"data\.text\.columns\n +received +30\n +accepted +at most 21: 3 pixels for each in 64"
    ):
        TextDrawing(Text(rows=10, columns=30), 64, randomly=False)
