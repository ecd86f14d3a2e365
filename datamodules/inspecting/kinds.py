"""What is looked at in a sample of each modality: whether it is damaged, what it is in figures, how it looks."""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np
from PIL import Image as PilImage
from PIL import ImageOps

from configs.schema import Text
from configs.schema.section import Modality
from datamodules.images.decoding import FORMATS, UNREADABLE, BadSampleError, open_image
from datamodules.images.encode import fault
from datamodules.text.drawing import TextDrawing
from datamodules.text.reading import read_text

if TYPE_CHECKING:
    from datamodules.audio.decoding import Recording

TEXT_PICTURE: Final = Text(rows=16, columns=32, line_breaks=True)
"""How texts are drawn to be looked at by people, whatever a network sees of them."""
TEXT_PICTURE_SIZE: Final = 256
RECORDING_PICTURE_SIZE: Final = (256, 128)
_BLOCK: Final = 1 << 16
"""Samples of a recording that are looked at at once: it may have more than there is memory for."""


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

    @property
    def plural(self) -> str:
        """Of the name, without an article."""
        return self.name.partition(" ")[2] + "s"


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


def _check_recording(contents: bytes) -> None:
    recording = _recording(contents)
    for first in range(0, recording.length, _BLOCK):
        recording.read(first, min(_BLOCK, recording.length - first))


def _describe_recording(contents: bytes) -> tuple[str, dict[str, int]]:
    recording = _recording(contents)
    milliseconds = round(recording.length / recording.rate_hz * 1000)
    return recording.form, {"length, ms": milliseconds, "sample rate, Hz": recording.rate_hz}


def _picture_of_recording(contents: bytes) -> tuple[PilImage.Image, str]:
    """The least and the greatest sample of each part, joined by lines: of long recordings, the first minute's."""
    recording = _recording(contents)
    samples = recording.read(0, min(recording.length, 60 * recording.rate_hz))
    width, height = RECORDING_PICTURE_SIZE
    picture = np.zeros((height, width), dtype=np.uint8)
    for column, part in enumerate(np.array_split(np.clip(samples, -1, 1), width)):
        low, high = (part.min(), part.max()) if len(part) else (0.0, 0.0)
        picture[round((1 - high) / 2 * (height - 1)) : round((1 - low) / 2 * (height - 1)) + 1, column] = 255
    return PilImage.fromarray(picture).convert("RGB"), f"{recording.length / recording.rate_hz:.2f} s"


def _recording(contents: bytes) -> "Recording":
    from datamodules.audio.decoding import Recording  # needs an extra

    return Recording(contents)


KINDS: Final[Mapping[Modality, Kind]] = {
    "image": Kind("an image", _check_image, _describe_image, _picture_of_image),
    "text": Kind("a text", read_text, _describe_text, _picture_of_text),
    "audio": Kind("a recording", _check_recording, _describe_recording, _picture_of_recording),
}
