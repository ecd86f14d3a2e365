"""A page of random images with their labels: what a data set looks like at a glance, wrong labels and all.

Images keep their shape: rows are filled to one width, and each row gets the height at which its images fit.
"""

import io
import re
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from PIL import Image as PilImage
from PIL import ImageDraw, ImageFont, ImageOps

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.images.decoding import BadSampleError
from datamodules.inspecting.kinds import KINDS
from datamodules.inspecting.survey import Sample

IMAGES = 48
WIDTH, MARGIN, GAP = 1680, 56, 16
ROW_HEIGHT = 176
CAPTION_HEIGHT = 54
TITLE_HEIGHT = 68
NARROWEST, WIDEST = 0.66, 2.2
"""Width over height; what is beyond loses its ends, for the sake of its caption and its neighbours."""
TINY = 64
"""Pixels of the longer side up to which an image is enlarged as it is, without smoothing."""
CORNER = 8
PAPER, INK, GREY, EDGE = "#fbfaf8", "#1d1d1f", "#84827d", "#e4e1da"
_WNID = re.compile(r"n\d{8}")


class Cell(NamedTuple):
    """An image on a page, with a line in bold and a line in grey beneath."""

    image: PilImage.Image
    name: str
    note: str

    @property
    def aspect(self) -> float:
        """Width over height, within bounds."""
        return min(WIDEST, max(NARROWEST, self.image.width / self.image.height))


def contact_sheet(samples: Sequence[Sample], classes: Sequence[str] | None, *, title: str, subtitle: str) -> bytes:
    """A PNG of these samples, sorted by label, with class names beneath.

    Args:
        samples: In any order.
        classes: Names by label. WordNet ids are followed up to their words.
        title: In large letters above.
        subtitle: In small letters below the title.

    Raises:
        DataError: If an image cannot be read.
    """
    cells = [_labelled(sample, classes) for sample in sorted(samples, key=lambda sample: (sample.label, sample.key))]
    return draw_cells(cells, title=title, subtitle=subtitle)


def draw_cells(cells: Sequence[Cell], *, title: str, subtitle: str) -> bytes:
    """A PNG of these, in their order."""
    rows = _rows([cell.aspect for cell in cells])
    heights = [_row_height([cells[i].aspect for i in row]) for row in rows]
    height = 2 * MARGIN + TITLE_HEIGHT + sum(map(round, heights)) + len(rows) * CAPTION_HEIGHT
    page = PilImage.new("RGB", (WIDTH, height), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((MARGIN, MARGIN), title, font=_font(34, bold=True), fill=INK, anchor="ls")
    draw.text((MARGIN, MARGIN + 32), subtitle, font=_font(17), fill=GREY, anchor="ls")
    top = MARGIN + TITLE_HEIGHT
    for row, row_height in zip(rows, heights, strict=True):
        left = float(MARGIN)
        for i in row:
            right = left + cells[i].aspect * row_height
            _paste(page, draw, cells[i], box=(round(left), top, round(right), top + round(row_height)))
            left = right + GAP
        top += round(row_height) + CAPTION_HEIGHT
    buffer = io.BytesIO()
    page.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _labelled(sample: Sample, classes: Sequence[str] | None) -> Cell:
    name, wordnet_id = name_and_id(sample.label, classes)
    found = cell(sample.key, sample.contents, name, "", modality=sample.modality)
    if wordnet_id is not None:
        return found._replace(note=f"{sample.label} · {wordnet_id}")
    known = classes is not None and 0 <= sample.label < len(classes)
    return found._replace(note=f"{sample.label} · {found.note}" if known else found.note)


def name_and_id(label: int, classes: Sequence[str] | None) -> tuple[str, str | None]:
    """What a label is called, in words; and its WordNet id where that is the name that it has."""
    if classes is None or not 0 <= label < len(classes):
        return f"label {label}", None
    name = classes[label]
    words = _words().get(name, "") if _WNID.fullmatch(name) else ""
    return (words, name) if words else (name, None)


def cell(key: str, contents: bytes, name: str, note: str, *, modality: Modality = "image") -> Cell:
    """An image upright, or a picture of what is in its place, and what is said of it; without a note, its size.

    Raises:
        DataError: If it cannot be read.
    """
    try:
        picture, size = KINDS[modality].picture(contents)
    except BadSampleError as error:
        raise DataError(f"sample {key}: {error}: effnet shards verify finds all") from None
    return Cell(picture, name, note or size)


@cache
def _words() -> dict[str, str]:
    """What WordNet calls its ids."""
    file = _package_file("timm", "data/_info/imagenet_synset_to_lemma.txt")
    lines = file.read_text(encoding="utf-8").splitlines() if file is not None else []
    return dict(line.split("\t", 1) for line in lines if "\t" in line)


def _package_file(package: str, path: str) -> Path | None:
    """A file that comes with a package, which is not imported: timm would bring torch along."""
    spec = find_spec(package)
    folders = spec.submodule_search_locations if spec is not None else None
    return next((Path(folder) / path for folder in folders or () if (Path(folder) / path).is_file()), None)


def _rows(aspects: Sequence[float]) -> list[list[int]]:
    """Numbers of the cells in each row: a row is full when a further cell would take it further from ROW_HEIGHT."""
    rows: list[list[int]] = [[]]
    for number, aspect in enumerate(aspects):
        now = [aspects[i] for i in rows[-1]]
        if now and abs(_full_height([*now, aspect]) - ROW_HEIGHT) > abs(_full_height(now) - ROW_HEIGHT):
            rows.append([])
        rows[-1].append(number)
    return rows


def _full_height(aspects: Sequence[float]) -> float:
    return (WIDTH - 2 * MARGIN - GAP * (len(aspects) - 1)) / sum(aspects)


def _row_height(aspects: Sequence[float]) -> float:
    """The height that fills the width; a last row that is too short stays so."""
    height = _full_height(aspects)
    return height if height < 1.25 * ROW_HEIGHT else ROW_HEIGHT


def _paste(page: PilImage.Image, draw: ImageDraw.ImageDraw, cell: Cell, *, box: tuple[int, int, int, int]) -> None:
    left, top, right, bottom = box
    size = (right - left, bottom - top)
    tiny = max(cell.image.size) <= TINY
    resample = PilImage.Resampling.NEAREST if tiny else PilImage.Resampling.LANCZOS
    page.paste(ImageOps.fit(cell.image, size, resample), (left, top), _rounded(size))
    draw.rounded_rectangle((left, top, right - 1, bottom - 1), CORNER, outline=EDGE)
    width = size[0] - 4
    draw.text((left + 2, bottom + 18), _cut(cell.name, _font(15, bold=True), width), INK, _font(15, bold=True), "ls")
    draw.text((left + 2, bottom + 36), _cut(cell.note, _font(12), width), GREY, _font(12), "ls")


def _rounded(size: tuple[int, int]) -> PilImage.Image:
    """A mask with round corners, drawn four times too large for smooth edges."""
    mask = PilImage.new("L", (size[0] * 4, size[1] * 4), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, mask.width - 1, mask.height - 1), CORNER * 4, fill=255)
    return mask.resize(size, PilImage.Resampling.BOX)


def _cut(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip(" ,") + "…"


@cache
def _font(size: int, *, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Matplotlib's own: there on every machine, with Greek and Cyrillic."""
    file = _package_file("matplotlib", f"mpl-data/fonts/ttf/DejaVuSans{'-Bold' if bold else ''}.ttf")
    if file is None:
        raise DataError("matplotlib is not installed with its fonts: reinstall it")
    return ImageFont.truetype(file, size)
