"""From the bytes of an image to pixels: what the file holds decides, never its name.

Images come upright, as EXIF says: as people see them, and as ``effnet shards build --resize`` writes them. timm's
reader and torchvision's ImageFolder leave them as they are stored: where images have such a tag, results differ.

JPEGs in colour or grey go to libjpeg-turbo, whose pixels are Pillow's to the bit in less time, and which can leave out
what a crop does not show; all else (PNG, WebP, GIF, BMP, CMYK, 16 bits, images that EXIF says lie on their side, JPEGs
with flaws that Pillow overlooks) goes to Pillow. Nothing is decoded before its header has said how large it is.

Measured on 25 November 2026 on one core of an EPYC, JPEGs of 500x375 and 109 KB, ms an image: the part that a random
crop shows 0.79, simplejpeg 0.96, with its fast DCT and upsampling 0.91, OpenCV 1.02, Pillow 1.10, torchvision 1.12.
0.72 of that is Huffman decoding: a scaled decode to 5/8 or 6/8, for which libjpeg-turbo has no SIMD code, takes 1.23,
one to 1/2 takes 0.91, but 2.2 in place of 3.2 where an image has 1411x1411 pixels.
"""

import io
import math
import struct
from typing import Any, Protocol

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from configs.problems import DataError
from datamodules.images.jpeg import Box, Pixels, decode_part

PIL_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What an image may be, whatever its name says. Pillow knows more, some of which start other programs (EPS)."""
DIVISORS = (8, 4, 2, 1)
"""Scaled decodes for which libjpeg-turbo has SIMD code."""
ORIENTATION_TAG = 0x0112
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image of each EXIF orientation upright (EXIF 2.32, 4.6.4)."""
SIDEWAYS = tuple(UPRIGHT[orientation] for orientation in (5, 6, 7, 8))
_SIMPLEJPEG_MODES = {"L": "GRAY", "RGB": "RGB", "RGBA": "RGBA"}
_SAME_AS_PILLOW = ("YCbCr", "Gray", "RGB")
_JPEG_START, _EXIF_START, _APP1, _START_OF_SCAN = b"\xff\xd8\xff", b"Exif\0\0", b"\xe1", b"\xda"
_JPEG_END = b"\xff\xd9"
_BEGINNINGS = {_JPEG_START: "JPEG", b"\x89PNG": "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP"}
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for a damaged image."""
_DAMAGED_EXIF = (*UNREADABLE, KeyError, TypeError, struct.error)


class BadSampleError(DataError):
    """One sample's image cannot be used; those beside it may be good."""


class EncodedImage(Protocol):
    """An image of which the header has been read.

    Attributes:
        size: Width and height in pixels, upright.
        plain_jpeg: The file, where it is one that any JPEG decoder takes for the same pixels: in YCbCr and wanted in
            RGB, upright, with an end. None otherwise.
    """

    size: tuple[int, int]
    plain_jpeg: bytes | None

    def pixels(self, box: Box | None = None, divisor: int = 1) -> Pixels:
        """Decode, upright.

        Args:
            box: The part that is wanted; all if left out.
            divisor: One of DIVISORS: an image that can be decoded to a smaller size comes at that part of it.

        Raises:
            BadSampleError: If it is damaged.
        """


class _Jpeg:
    """What libjpeg-turbo decodes as Pillow would."""

    def __init__(self, data: bytes, mode: str, size: tuple[int, int], colorspace: str) -> None:
        self.size = size
        # Without an end it may be cut short, which decoders judge differently.
        plain = mode == "RGB" and colorspace == "YCbCr" and data.endswith(_JPEG_END)
        self.plain_jpeg = data if plain else None
        self._data = data
        self._mode = mode

    def pixels(self, box: Box | None = None, divisor: int = 1) -> Pixels:
        width, height = self.size
        if box is not None and divisor == 1 and self._mode == "RGB":
            part = decode_part(self._data, box)
            if part is not None:
                return part
        try:
            found: Pixels = simplejpeg.decode_jpeg(
                self._data,
                _SIMPLEJPEG_MODES[self._mode],
                min_height=math.ceil(height / divisor),
                min_width=math.ceil(width / divisor),
                min_factor=divisor,
            )
        except ValueError:  # it is strict: whether a flaw matters is for Pillow to say
            return _Other(self._data, self._mode).pixels(box)
        return _cut(found, box, divisor)


class _Other:
    """What Pillow decodes, always to its full size."""

    plain_jpeg: bytes | None = None

    def __init__(self, data: bytes, mode: str) -> None:
        try:
            self._image = Image.open(io.BytesIO(data), formats=FORMATS)
        except UnidentifiedImageError:
            raise BadSampleError(f"not a readable image ({unknown_format(data)})") from None
        except UNREADABLE as error:
            raise BadSampleError(f"not a readable image ({error})") from error
        width, height = self._image.size
        check_size(width, height)
        self._mode = mode
        if self._image.format == "PNG":
            self._load()  # EXIF data may follow the pixels: asking for it loads them, and hides that they are damaged
        self._upright = orientation(self._image)
        self.size = (height, width) if self._upright in SIDEWAYS else (width, height)

    def _load(self) -> None:
        try:
            self._image.load()
        except UNREADABLE as error:
            raise BadSampleError(f"not a readable image ({error})") from error

    def pixels(self, box: Box | None = None, divisor: int = 1) -> Pixels:
        self._load()
        try:
            image = in_8_bits(self._image).convert(self._mode)
        except UNREADABLE as error:
            raise BadSampleError(f"not a readable image ({error})") from error
        if self._upright is not None:
            image = image.transpose(self._upright)
        return _cut(np.array(image).reshape(image.height, image.width, -1), box)


def open_image(data: bytes, mode: str) -> EncodedImage:
    """Read the header of an image that is wanted in Pillow's ``mode`` L, RGB or RGBA.

    Raises:
        BadSampleError: If it is of no known format, damaged, or of more pixels than Pillow's MAX_IMAGE_PIXELS. Damage
            behind the header is found by ``pixels``.
    """
    if data.startswith(_JPEG_START):
        try:
            height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return _Other(data, mode)
        check_size(width, height)
        if colorspace in _SAME_AS_PILLOW and _is_upright(data):
            return _Jpeg(data, mode, (width, height), colorspace)
    return _Other(data, mode)


def unknown_format(data: bytes) -> str:
    """What to say of bytes that Pillow knows no image in."""
    for beginning, name in _BEGINNINGS.items():
        if data.startswith(beginning):
            return f"a {name} whose header is damaged"
    return f"not JPEG, PNG, WebP, GIF or BMP: {f'begins with {data[:16]!r}' if data else 'empty'}"


def _cut(pixels: Pixels, box: Box | None, divisor: int = 1) -> Pixels:
    """Cut a box out of an image that may have come at a part of the size that the box is of."""
    if box is None:
        return pixels
    top, left, rows, columns = box
    first_row, first_column = round(top / divisor), round(left / divisor)
    last_row = max(round((top + rows) / divisor), first_row + 1)
    last_column = max(round((left + columns) / divisor), first_column + 1)
    return pixels[first_row:last_row, first_column:last_column]


def check_size(width: int, height: int) -> None:
    """See that an image has no more pixels than are decoded in training: Pillow's MAX_IMAGE_PIXELS, 89 million.

    Raises:
        BadSampleError: If it has.
    """
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and width * height > limit:
        raise BadSampleError(
            f"not a readable image ({width}x{height} pixels, the limit is {limit}: decompression bomb)"
        )


def _is_upright(jpeg: bytes) -> bool:
    if not _may_have_exif(jpeg):
        return True
    try:
        return orientation(Image.open(io.BytesIO(jpeg), formats=("JPEG",))) is None
    except UNREADABLE:
        return False


def _may_have_exif(jpeg: bytes) -> bool:
    """Walk over the segments before the scan; Pillow takes 20 us to open a file, this takes 2."""
    at = 2
    while jpeg[at : at + 1] == b"\xff":
        marker = jpeg[at + 1 : at + 2]
        if marker == _START_OF_SCAN:
            return False
        if marker == _APP1 and jpeg.startswith(_EXIF_START, at + 4):
            return True
        at += 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
    return True


def orientation(image: Image.Image) -> Image.Transpose | None:
    """What turns an image upright; None where it is upright or nothing is known."""
    try:
        value: Any = image.getexif().get(ORIENTATION_TAG)
        return UPRIGHT.get(value)
    except _DAMAGED_EXIF:
        return None


def in_8_bits(image: Image.Image) -> Image.Image:
    """Grey images of 16 bits keep their upper 8: Pillow's own conversion makes all above 255 white."""
    if not image.mode.startswith("I;16"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
