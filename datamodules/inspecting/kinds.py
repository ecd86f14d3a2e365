"""What is looked at in a sample of each modality: whether it is damaged, what it is in figures, how it looks."""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from PIL import Image as PilImage
from PIL import ImageOps

from configs.schema import Text
from configs.schema.section import Modality
from datamodules.images.decoding import FORMATS, UNREADABLE, BadSampleError, open_image
from datamodules.images.encode import fault
from datamodules.text.drawing import TextDrawing
from datamodules.text.reading import read_text

TEXT_PICTURE: Final = Text(rows=16, columns=32, line_breaks=True)
"""How texts are drawn to be looked at by people, whatever a network sees of them."""
TEXT_PICTURE_SIZE: Final = 256


class Kind(NamedTuple):
    """A modality as commands about shards see it.

    Attributes:
        name: In a table, with its article.
        check: Reads the whole of a sample. Raises BadSampleError with what is wrong.
        describe: Format and figures of a good one. Raises BadSampleError, where that takes no more than a look.
        picture: How it looks, and its size in words. Raises BadSampleError.
    """

    name: str
    check: Callable[[bytes], object]
    describe: Callable[[bytes], tuple[str, dict[str, int]]]
    picture: Callable[[bytes], tuple[PilImage.Image, str]]


def _check_image(contents: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            open_image(contents, "RGB").pixels()
    except BadSampleError as error:
        reason = fault(contents, error.__cause__) if isinstance(error.__cause__, UNREADABLE) else str(error)
        raise BadSampleError(reason) from error


def _opened_image(contents: bytes) -> PilImage.Image:
    try:
        return PilImage.open(io.BytesIO(contents), formats=FORMATS)
    except UNREADABLE as error:
        raise BadSampleError(fault(contents, error)) from None


def _describe_image(contents: bytes) -> tuple[str, dict[str, int]]:
    image = _opened_image(contents)
    return f"{image.format} {image.mode}", {"width, pixels": image.width, "height, pixels": image.height}


def _picture_of_image(contents: bytes) -> tuple[PilImage.Image, str]:
    image = _opened_image(contents)
    size = f"{image.width}\N{MULTIPLICATION SIGN}{image.height}"
    try:
        return ImageOps.exif_transpose(image).convert("RGB"), size
    except UNREADABLE as error:
        raise BadSampleError(fault(contents, error)) from None


def _describe_text(contents: bytes) -> tuple[str, dict[str, int]]:
    text = read_text(contents)
    return "ASCII" if text.isascii() else "UTF-8", {"characters": len(text), "lines": len(text.splitlines())}


def _picture_of_text(contents: bytes) -> tuple[PilImage.Image, str]:
    text = read_text(contents)
    picture = TextDrawing(TEXT_PICTURE, TEXT_PICTURE_SIZE, randomly=False).draw(text)
    return PilImage.fromarray(picture).convert("RGB"), f"{len(text):,} characters"


KINDS: Final[Mapping[Modality, Kind]] = {
    "image": Kind("an image", _check_image, _describe_image, _picture_of_image),
    "text": Kind("a text", read_text, _describe_text, _picture_of_text),
}
