"""What a shard stores of an image: the same bytes, or a smaller JPEG that looks the same."""

import io
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image as PilImage
from PIL import ImageCms

from configs.problems import DataError
from datamodules.images.decoding import open_image
from datamodules.images.encode import encode
from tests.conftest import picture
from tests.unit.datamodules.sources import jpeg


def opened(contents: bytes) -> PilImage.Image:
    image = PilImage.open(io.BytesIO(contents))
    image.load()
    return image


def pixels(image: PilImage.Image) -> NDArray[np.int32]:
    return np.asarray(image.convert("RGB")).astype(np.int32)


def saved(image: PilImage.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def small(contents: bytes, short_side: int = 32, quality: int = 95) -> PilImage.Image:
    extension, stored = encode(contents, short_side=short_side, quality=quality)
    assert extension == "jpg"
    image = opened(stored)
    assert image.format == "JPEG"
    return image


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (30, 30), (29, 500)])
def test_images_whose_short_side_is_not_above_it_stay_to_the_byte(size: tuple[int, int]) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = 6
    contents = jpeg(1, size, exif=exif)
    assert encode(contents, short_side=30, quality=50) == ("jpg", contents)
    assert encode(contents, short_side=None, quality=50) == ("jpg", contents)


@pytest.mark.parametrize(
    ("size", "expected"), [((400, 300), (43, 32)), ((300, 400), (32, 43)), ((33, 900), (32, 873)), ((64, 64), (32, 32))]
)
def test_the_short_side_is_the_one_asked_for_and_the_shape_stays(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert small(jpeg(2, size)).size == expected


def test_it_looks_like_a_careful_resize_of_the_whole_image() -> None:
    """Also where JPEG is decoded at a part of its size."""
    enlarged = opened(jpeg(3)).resize((800, 600), PilImage.Resampling.BICUBIC)
    contents = saved(enlarged, "JPEG", quality=95)
    reference = opened(contents).resize((85, 64), PilImage.Resampling.LANCZOS)
    difference = pixels(small(contents, 64)) - pixels(reference)
    assert np.abs(difference).mean() < 1.5
    assert abs(difference.mean()) < 0.5


def test_the_quality_counts() -> None:
    contents = jpeg(4, (400, 300))
    low, high = (len(encode(contents, short_side=100, quality=quality)[1]) for quality in (30, 95))
    assert low < 0.7 * high


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation: int) -> None:
    exif = PilImage.Exif()
    exif[0x0112] = orientation
    upright = opened(jpeg(5, (120, 80)))
    stored_as = {
        2: PilImage.Transpose.FLIP_LEFT_RIGHT,
        3: PilImage.Transpose.ROTATE_180,
        4: PilImage.Transpose.FLIP_TOP_BOTTOM,
        5: PilImage.Transpose.TRANSPOSE,
        6: PilImage.Transpose.ROTATE_90,
        7: PilImage.Transpose.TRANSVERSE,
        8: PilImage.Transpose.ROTATE_270,
    }
    lying = upright.transpose(stored_as[orientation]) if orientation in stored_as else upright
    result = small(saved(lying, "JPEG", quality=95, exif=exif), 40)
    assert result.size == (60, 40)
    assert result.getexif().get(0x0112, 1) == 1
    assert np.abs(pixels(result) - pixels(upright.resize((60, 40), PilImage.Resampling.LANCZOS))).mean() < 3


def test_damaged_exif_data_costs_no_image() -> None:
    contents = jpeg(6, (80, 60), exif=b"Exif\0\0MM\0*\xff\xff\xff\xff garbage")
    assert small(contents).size == (43, 32)


def test_colour_profiles_are_converted_to_srgb() -> None:
    """A profile that swaps red and blue: its image comes out with them swapped, and without the profile."""
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    tags = {srgb[at : at + 4]: at for at in range(132, 132 + 12 * int.from_bytes(srgb[128:132], "big"), 12)}
    swapped = bytearray(srgb)
    swapped[tags[b"rXYZ"] : tags[b"rXYZ"] + 4], swapped[tags[b"bXYZ"] : tags[b"bXYZ"] + 4] = b"bXYZ", b"rXYZ"
    image = PilImage.new("RGB", (80, 80), (200, 60, 30))
    result = small(saved(image, "JPEG", quality=95, icc_profile=bytes(swapped)))
    assert np.abs(pixels(result)[16, 16] - (30, 60, 200)).max() < 8
    assert "icc_profile" not in result.info
    unchanged = small(saved(image, "JPEG", quality=95, icc_profile=srgb))
    assert np.abs(pixels(unchanged)[16, 16] - (200, 60, 30)).max() < 4


def test_a_damaged_profile_costs_no_image() -> None:
    image = PilImage.new("RGB", (80, 80), (200, 60, 30))
    result = small(saved(image, "JPEG", quality=95, icc_profile=b"no profile" * 20))
    assert np.abs(pixels(result)[16, 16] - (200, 60, 30)).max() < 4


@pytest.mark.parametrize(
    ("mode", "file_format", "expected"),
    [
        ("CMYK", "JPEG", "RGB"),
        ("L", "JPEG", "L"),
        ("RGBA", "PNG", "RGB"),
        ("P", "PNG", "RGB"),
        ("LA", "PNG", "L"),
        ("1", "PNG", "L"),
        ("RGB", "WEBP", "RGB"),
        ("RGB", "BMP", "RGB"),
        ("P", "GIF", "RGB"),
    ],
)
def test_every_mode_becomes_colour_or_grey(mode: str, file_format: str, expected: str) -> None:
    image = opened(jpeg(7, (80, 60))).convert(mode)
    result = small(saved(image, file_format))
    assert result.mode == expected
    reference = opened(saved(image, file_format)).convert("RGB").resize(result.size, PilImage.Resampling.LANCZOS)
    assert np.abs(pixels(result) - pixels(reference)).mean() < 6


def test_grey_of_16_bits_keeps_its_shades() -> None:
    ramp = np.tile(np.linspace(0, 65535, 80).astype(np.uint16), (80, 1))
    result = small(saved(PilImage.fromarray(ramp), "PNG"))
    assert result.mode == "L"
    assert np.abs(np.asarray(result)[16].astype(int) - np.linspace(0, 255, 32)).max() < 8


@pytest.mark.parametrize(
    ("contents", "what"),
    [
        (b"", "not JPEG, PNG, WebP, GIF or BMP: empty"),
        (b"<!DOCTYPE html><html>", "begins with b'<!DOCTYPE html><'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not JPEG, PNG, WebP, GIF or BMP"),
        (jpeg(8, (80, 60))[:-400], "a damaged image: .*truncated"),
        (picture(8, size=80)[:-60], "a damaged image: "),
        (picture(8, size=80)[:200] + bytes(40) + picture(8, size=80)[240:], "a damaged image: "),
    ],
)
def test_what_is_no_image_is_a_data_error(contents: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        encode(contents, short_side=32, quality=90)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "GIF"])
def test_no_image_is_stored_that_training_would_refuse_for_its_size(
    file_format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between Pillow's limit, from which on it warns, and twice that, where it refuses by itself."""
    monkeypatch.setattr(PilImage, "MAX_IMAGE_PIXELS", 1000)
    contents = picture(0, size=40, file_format=file_format)
    with pytest.raises(DataError, match="40x40 pixels, the limit is 1000"):
        encode(contents, short_side=None, quality=90)
    with pytest.raises(DataError, match="40x40 pixels, the limit is 1000"):
        open_image(contents, "RGB")

    _, smaller = encode(contents, short_side=16, quality=90)
    assert open_image(smaller, "RGB").size == (16, 16)
