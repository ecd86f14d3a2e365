"""The bytes of an image as a shard holds them: as they are, or smaller. Their extension follows what they are."""

import io
import warnings
from functools import cache

from PIL import Image as PilImage
from PIL import ImageCms, UnidentifiedImageError

from configs.problems import DataError
from datamodules.images.decoding import FORMATS, UNREADABLE, check_size, in_8_bits, orientation, unknown_format

EXTENSIONS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
"""MPO is a JPEG with more pictures after the first."""
DEFAULT_QUALITY = 90
GREY_MODES = ("1", "L", "LA", "I", "F")
DRAFT_FACTOR = 2
"""JPEG is decoded at 1/2, 1/4 or 1/8 where this many times the pixels wanted are left, as for a thumbnail."""
REDUCING_GAP = 3.0
"""Averages boxes first where far more pixels are left; at 3 the result is as good as that of the filter alone (Pillow's
documentation of Image.resize)."""


def encode(contents: bytes, *, short_side: int | None, quality: int) -> tuple[str, bytes]:
    """Extension and bytes to store.

    JPEG, PNG and WebP whose short side is not above ``short_side`` stay as they are, to the byte. Larger ones become
    JPEG of that short side, upright and in sRGB, or grey where they were. GIF and BMP become PNG.

    Args:
        contents: The file as it was found; its name does not count.
        short_side: Pixels; None leaves every size.
        quality: Of the JPEG, 1 to 100.

    Raises:
        DataError: If it is no image of these formats, damaged where it has to be decoded, or would be stored with more
            pixels than training decodes.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = PilImage.open(io.BytesIO(contents), formats=FORMATS)
            if short_side is not None and min(image.size) > short_side:
                return "jpg", _saved(_shrunk(image, short_side), "JPEG", quality=quality, optimize=True)
            check_size(*image.size)  # it is stored in this size, and training would refuse it
            if image.format in EXTENSIONS:
                return EXTENSIONS[image.format], contents
            return "png", _saved(image, "PNG")
    except UNREADABLE as error:
        raise DataError(fault(contents, error)) from error


def fault(contents: bytes, error: Exception) -> str:
    """What is wrong with an image, from what Pillow raised for it."""
    if isinstance(error, UnidentifiedImageError):
        return unknown_format(contents)
    return f"a damaged image: {error}"


def _saved(image: PilImage.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def _shrunk(image: PilImage.Image, short_side: int) -> PilImage.Image:
    scale = short_side / min(image.size)
    width, height = (max(short_side, round(side * scale)) for side in image.size)
    image.draft(None, (width * DRAFT_FACTOR, height * DRAFT_FACTOR))
    image.load()  # before EXIF data is asked for: a PNG would load for that, and load a second time without an error
    turn = orientation(image)
    plain = _plain(image)
    small = plain.resize((width, height), PilImage.Resampling.LANCZOS, reducing_gap=REDUCING_GAP)
    coloured = _in_srgb(small, image.info.get("icc_profile"))
    return coloured if turn is None else coloured.transpose(turn)


def _plain(image: PilImage.Image) -> PilImage.Image:
    """Grey, CMYK or RGB of 8 bits, which can be resized and have a profile of their own."""
    image = in_8_bits(image)
    if image.mode in GREY_MODES:
        return image.convert("L")
    return image if image.mode in ("CMYK", "RGB") else image.convert("RGB")


def _in_srgb(image: PilImage.Image, profile: object) -> PilImage.Image:
    if isinstance(profile, bytes) and image.mode != "L":
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if source.profile.xcolor_space.strip() == image.mode:
                converted = ImageCms.profileToProfile(image, source, _srgb(), outputMode="RGB")
                assert converted is not None
                return converted
        except (ImageCms.PyCMSError, OSError):
            pass  # a damaged profile: its colours are taken for sRGB's, as browsers do
    return image if image.mode == "L" else image.convert("RGB")


@cache
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
