"""The shapes of characters: each drawn once, into a cell of a given size.

A picture is then put together by one index: 31 microseconds for 512 characters in 128x128 pixels, where Pillow would
take some milliseconds to draw them one by one (28 November 2026, one core of an EPYC).
"""

import math
from functools import lru_cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from configs.problems import ConfigError, Problem, shown

Pixels = NDArray[np.uint8]
BLANK: Final = 0
"""Number of the cell without a character."""
_SIZE = 100
"""Of the font whose proportions are measured."""
_IN_NO_FONT = "\U0010ffff"
"""No character, now and for ever (Unicode 16, section 23.7): a font draws what stands for those that it lacks."""


class Glyphs:
    """Characters of a font in cells of one size, white on black, each as high as fits. Too wide ones are squeezed.

    Attributes:
        height: Of a cell in pixels.
        width: Of a cell in pixels.
    """

    def __init__(self, font: str | None, *, height: int, width: int) -> None:
        """Open the font.

        Args:
            font: File; None is Pillow's own.
            height: Of a cell in pixels.
            width: Of a cell in pixels.

        Raises:
            ConfigError: If there is no such font.
        """
        self.height = height
        self.width = width
        ascent, descent = open_font(font, _SIZE).getmetrics()
        self._font = open_font(font, _SIZE * height / (ascent + descent))
        self._baseline = round(height * ascent / (ascent + descent))
        self._numbers = {" ": BLANK}
        self._cells = np.zeros((1, height, width), dtype=np.uint8)
        self._lacking = self._drawn(_IN_NO_FONT)
        self._lacks: set[str] = set()

    def numbers(self, text: str) -> list[int]:
        """Of each character its cell's number."""
        missing = [character for character in dict.fromkeys(text) if character not in self._numbers]
        if missing:
            drawn = [self._drawn(character) for character in missing]
            for character, cell in zip(missing, drawn, strict=True):
                self._numbers[character] = len(self._numbers)
                if np.array_equal(cell, self._lacking) and not character.isspace():
                    self._lacks.add(character)
            self._cells = np.concatenate([self._cells, np.stack(drawn)])
        return [self._numbers[character] for character in text]

    def lacks(self, text: str) -> list[str]:
        """The characters of a text, each time they come, that the font has no shape of. Their numbers must be known."""
        return [character for character in text if character in self._lacks]

    def page(self, numbers: NDArray[np.int64]) -> Pixels:
        """Cells beside and below each other.

        Args:
            numbers: (rows, columns).

        Returns:
            (rows * height, columns * width) uint8.
        """
        rows, columns = numbers.shape
        return self._cells[numbers].transpose(0, 2, 1, 3).reshape(rows * self.height, columns * self.width)

    def _drawn(self, character: str) -> Pixels:
        advance = math.ceil(self._font.getlength(character))
        image = Image.new("L", (max(advance, self.width), self.height))
        left = (image.width - advance) / 2
        ImageDraw.Draw(image).text((left, self._baseline), character, fill=255, font=self._font, anchor="ls")
        if image.width > self.width:
            image = image.resize((self.width, self.height), Image.Resampling.BOX)
        return np.asarray(image)


@lru_cache(maxsize=32)
def glyphs(font: str | None, height: int, width: int) -> Glyphs:
    """Glyphs of a font and a size of cells, with all that this process has drawn of them.

    Raises:
        ConfigError: If there is no such font.
    """
    return Glyphs(font, height=height, width=width)


def open_font(font: str | None, size: float) -> ImageFont.FreeTypeFont:
    """A font file, or Pillow's own font.

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        found = ImageFont.load_default(size) if font is None else ImageFont.truetype(Path(font).expanduser(), size)
    except OSError as error:
        accepted = f"a TrueType or OpenType file ({error})"
        raise ConfigError([Problem(key="data.text.font", received=shown(font), accepted=accepted)]) from None
    assert isinstance(found, ImageFont.FreeTypeFont)
    return found
