"""Settings of text that is drawn as a picture."""

from configs.schema.section import Fraction, PositiveFloat, PositiveInt, Section

SMALLEST_CELL = 3
"""Pixels of a cell's side: below it no letter can be told from another."""


class Text(Section):
    """Text as a picture: its characters fill a square line after line, each in a cell of its own.

    After Sun et al., Super Characters (arXiv 1810.07653). No effect with another data.modality.
    """

    font: str | None = None
    """TrueType or OpenType file with the characters of the texts; None is Pillow's own font, of Latin letters alone."""
    rows: PositiveInt = 14
    """Lines of the square. A cell's height in pixels is the picture's side divided by it, without the remainder."""
    columns: PositiveInt | None = None
    """Characters of a line; None takes as many as rows: the square cells of the paper. Latin letters are about half as
    wide as they are high."""
    line_breaks: bool = False
    """Whether lines and their indentation are kept, tabs as 4 spaces, and what is longer than a line goes on in the
    next. Off: white space of any kind between two words is one space, and the square is filled."""
    random_start: bool = True
    """In training, show of a text that has no room in the square a random part that begins with a word (of lines that
    are kept: with a line). Off, as in evaluation: the beginning."""
    random_scale: tuple[PositiveFloat, PositiveFloat] = (1.0, 1.0)
    """Factors of the size of cells, between which training draws evenly: other numbers of rows and columns fill the
    same square."""
    random_shift: Fraction = 0.0
    """Largest share of a cell by which training moves the text, down or up and to either side."""
