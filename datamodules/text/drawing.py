"""Text as a picture: a grid of characters fills a square, as in Sun et al., Super Characters (arXiv 1810.07653)."""

import random
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.problems import ConfigError, Problem
from configs.schema import Text
from configs.schema.text import SMALLEST_CELL
from datamodules.images.decoding import BadSampleError
from datamodules.text.glyphs import BLANK, Glyphs, Pixels, glyphs
from datamodules.text.reading import flowing, wrapped


class Layout(NamedTuple):
    """Where text stands on a picture.

    Attributes:
        cell: Height and width of a character's cell in pixels.
        shift: Pixels by which all is moved down, and to the right.
        random_start: Whether a text that is too long begins anywhere.
    """

    cell: tuple[int, int]
    shift: tuple[int, int] = (0, 0)
    random_start: bool = False


class TextDrawing:
    """Draws texts for one size of pictures.

    Attributes:
        image_size: Side of the picture in pixels.
        settings: Of the drawing.
        randomly: Whether start, scale and shift are drawn, from Python's global generator.
    """

    def __init__(self, settings: Text, image_size: int, *, randomly: bool) -> None:
        """Open the font, so that a wrong one is found before anything is drawn.

        Raises:
            ConfigError: If there is no such font, or no room for a letter in a cell.
        """
        self.image_size = image_size
        self.settings = settings
        self.randomly = randomly
        self._cell = image_size // settings.rows, image_size // (settings.columns or settings.rows)
        problems = [
            Problem(
                key=f"data.text.{name}",
                received=str(count),
                accepted=f"at most {image_size // SMALLEST_CELL}: {SMALLEST_CELL} pixels for each in {image_size}",
            )
            for name, count, side in zip(
                ("rows", "columns"), (settings.rows, settings.columns), self._cell, strict=True
            )
            if count is not None and side < SMALLEST_CELL
        ]
        if problems:
            raise ConfigError(problems)
        glyphs(settings.font, *self._cell)

    def draw(self, text: str) -> Pixels:
        """A picture of a text, white on black.

        Args:
            text: As ``read_text`` gives it.

        Returns:
            (image_size, image_size) uint8.

        Raises:
            BadSampleError: If the font has no shape for most of what is to be seen.
        """
        layout = self._layout()
        rows, columns = (self.image_size // side for side in layout.cell)
        known = glyphs(self.settings.font, *layout.cell)
        lines = self._lines(text, rows, columns, random_start=layout.random_start)
        page = known.page(_numbers(known, lines, rows, columns))
        return _placed(page, self.image_size, layout.shift)

    def _layout(self) -> Layout:
        settings = self.settings
        if not self.randomly:
            return Layout(self._cell)
        scale = random.uniform(*settings.random_scale)
        cell = tuple(min(max(round(side * scale), SMALLEST_CELL), self.image_size) for side in self._cell)
        shift = tuple(round(random.uniform(-1, 1) * settings.random_shift * side) for side in cell)
        return Layout((cell[0], cell[1]), (shift[0], shift[1]), settings.random_start)

    def _lines(self, text: str, rows: int, columns: int, *, random_start: bool) -> Sequence[str]:
        if self.settings.line_breaks:
            lines = wrapped(text, columns)
            first = random.randint(0, max(len(lines) - rows, 0)) if random_start else 0
            return lines[first : first + rows]
        words = flowing(text)
        spare = len(words) - rows * columns
        if random_start and spare > 0:
            start = random.randint(0, spare)
            word = words.rfind(" ", 0, start + 1) + 1
            words = words[word if start - word < columns else start :]  # some scripts have no spaces
        return [words[at : at + columns] for at in range(0, min(len(words), rows * columns), columns)]


def _numbers(known: Glyphs, lines: Sequence[str], rows: int, columns: int) -> NDArray[np.int64]:
    """The (rows, columns) grid of cells. Lines that are shorter, and rows without a line, are blank.

    Raises:
        BadSampleError: If the font has no shape for more than half of the characters.
    """
    text = "".join(line.ljust(columns) for line in lines)
    grid = np.full(rows * columns, BLANK, dtype=np.int64)
    grid[: len(text)] = known.numbers(text)
    lacking = known.lacks(text)
    if 2 * len(lacking) > len(text) - text.count(" "):
        raise BadSampleError(f"the font has no {lacking[0]!r}, nor most of its other characters: set data.text.font")
    return grid.reshape(rows, columns)


def _placed(page: Pixels, side: int, shift: tuple[int, int]) -> Pixels:
    """A page in the middle of a square, moved by so many pixels down and right; what leaves the square is lost."""
    picture = np.zeros((side, side), dtype=np.uint8)
    target, source = [], []
    for length, moved in zip(page.shape, shift, strict=True):
        first = (side - length) // 2 + moved
        target.append(slice(max(first, 0), min(first + length, side)))
        source.append(slice(max(-first, 0), min(side - first, length)))
    picture[tuple(target)] = page[tuple(source)]
    return picture
