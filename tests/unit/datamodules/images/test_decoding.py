"""From bytes to pixels: any kind of image, the same pixels as Pillow's, damage as an error of one sample."""

import io
import resource
import struct
import sys
import warnings
import zlib
from multiprocessing import Queue, get_context

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, PngImagePlugin
from PIL.PngImagePlugin import PngInfo

from configs.schema import Data
from datamodules.images import decoding, jpeg
from datamodules.images.decoding import BadSampleError, open_image
from datamodules.streaming.transforms import evaluation_transform, training_transform
from tests.unit.datamodules.encoded import encoded, noise, photograph

EXIF_ORIENTATION = 0x0112


def by_pillow(contents: bytes, mode: str = "RGB") -> np.ndarray:
    """What timm's datasets read."""
    image = Image.open(io.BytesIO(contents)).convert(mode)
    return np.array(image).reshape(image.height, image.width, -1)


def read(contents: bytes, mode: str = "RGB", **options: object) -> np.ndarray:
    return np.asarray(open_image(contents, mode).pixels(**options))


# Kinds of images


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(
    ("source_mode", "file_format"),
    [
        ("RGB", "JPEG"),
        ("L", "JPEG"),
        ("CMYK", "JPEG"),
        ("RGB", "PNG"),
        ("RGBA", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("1", "PNG"),
        ("RGB", "WEBP"),
        ("RGBA", "WEBP"),
        ("P", "GIF"),
        ("RGB", "BMP"),
    ],
)
def test_images_of_any_kind_have_pillows_pixels(source_mode: str, file_format: str, mode: str) -> None:
    contents = encoded(photograph(width=61, height=40).convert(source_mode), file_format)
    found, expected = read(contents, mode), by_pillow(contents, mode)
    assert found.shape == expected.shape == (40, 61, {"L": 1, "RGB": 3, "RGBA": 4}[mode])
    if (source_mode, file_format, mode) == ("RGB", "JPEG", "L"):
        # Brightness is stored as it is; Pillow computes it from colours, rounded twice on the way.
        assert np.abs(found.astype(int) - expected).mean() < 0.5
    else:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("progressive", [False, True])
def test_colour_jpegs_have_pillows_pixels(subsampling: str, progressive: bool) -> None:
    contents = encoded(photograph(), "JPEG", quality=90, subsampling=subsampling, progressive=progressive)
    np.testing.assert_array_equal(read(contents), by_pillow(contents))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_grey_images_of_16_bits_keep_their_upper_8(mode: str) -> None:
    levels = (np.arange(256, dtype=np.uint16)[:, None] * 257).repeat(4, axis=1)
    contents = encoded(Image.fromarray(levels), "PNG")
    assert Image.open(io.BytesIO(contents)).mode == "I;16"
    np.testing.assert_array_equal(read(contents, mode)[:, 0, 0], np.arange(256))


def test_colour_images_of_16_bits_keep_their_upper_8() -> None:
    rows = b"".join(b"\0" + struct.pack(">3H", 257 * level, 0, 65535) for level in (0, 128, 255))
    contents = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (
            (b"IHDR", struct.pack(">2I5B", 1, 3, 16, 2, 0, 0, 0)),
            (b"IDAT", zlib.compress(rows)),
            (b"IEND", b""),
        )
    )
    assert read(contents).tolist() == [[[0, 0, 255]], [[128, 0, 255]], [[255, 0, 255]]]


def test_a_palette_with_transparency_is_read() -> None:
    contents = encoded(noise(20, 10).convert("P"), "PNG", transparency=bytes(range(256)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read(contents), by_pillow(contents))


def test_a_png_named_jpeg_is_read_as_what_it_is() -> None:
    """As n02105855_2933.JPEG of ImageNet. Nothing but the bytes is asked."""
    image = noise(20, 10)
    np.testing.assert_array_equal(read(encoded(image, "PNG")), np.array(image))


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_come_upright_whatever_way_they_are_stored(orientation: int, file_format: str) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = orientation
    options = {"lossless": True} if file_format == "WEBP" else {}
    contents = encoded(photograph(width=64, height=48), file_format, exif=exif, **options)
    image = open_image(contents, "RGB")
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(contents))).convert("RGB")
    assert image.size == upright.size == ((48, 64) if orientation >= 5 else (64, 48))
    np.testing.assert_array_equal(image.pixels(), np.array(upright))
    np.testing.assert_array_equal(image.pixels((5, 7, 11, 13)), np.array(upright)[5:16, 7:20])


@pytest.mark.parametrize("damage", [b"", b"XX", b"MM\0*\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"])
def test_damaged_exif_data_leaves_an_image_as_it_is_stored(damage: bytes) -> None:
    contents = encoded(photograph(width=64, height=48), "JPEG", exif=b"Exif\0\0" + damage)
    plain = encoded(photograph(width=64, height=48), "JPEG")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        np.testing.assert_array_equal(read(contents), read(plain))


# Parts of images


@pytest.mark.parametrize(
    "box", [(0, 0, 375, 500), (0, 0, 1, 1), (374, 499, 1, 1), (17, 33, 201, 199), (100, 3, 8, 480)]
)
@pytest.mark.parametrize(
    ("source_mode", "options"),
    [("RGB", {}), ("RGB", {"subsampling": "4:4:4"}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})],
)
def test_a_part_of_a_jpeg_is_that_part_of_the_whole_to_the_bit(
    box: tuple[int, int, int, int], source_mode: str, options: dict[str, object]
) -> None:
    contents = encoded(photograph().convert(source_mode), "JPEG", quality=92, **options)
    top, left, rows, columns = box
    expected = by_pillow(contents)[top : top + rows, left : left + columns]
    np.testing.assert_array_equal(read(contents, box=box), expected)


def test_a_part_is_the_same_where_no_decoder_of_parts_is_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    contents = encoded(photograph(), "JPEG")
    box = (17, 33, 201, 199)
    expected = read(contents, box=box)
    monkeypatch.setattr(decoding, "decode_part", lambda *_: None)
    np.testing.assert_array_equal(read(contents, box=box), expected)


@pytest.mark.skipif(sys.platform != "linux", reason="nvImageCodec is built for Linux")
def test_parts_are_decoded_alone_and_in_silence(capfd: pytest.CaptureFixture[str]) -> None:
    jpeg._tools.cache_clear()
    contents = encoded(photograph(), "JPEG")
    part = jpeg.decode_part(contents, (17, 33, 201, 199))
    assert part is not None
    assert part.shape == (201, 199, 3)
    assert jpeg.decode_part(contents[:2000], (17, 33, 201, 199)) is None
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("divisor", [2, 4, 8])
def test_a_jpeg_can_be_decoded_to_a_fraction_of_its_size(divisor: int) -> None:
    photo = photograph(width=512, height=384)
    contents = encoded(photo, "JPEG", quality=95)
    image = open_image(contents, "RGB")
    small = image.pixels(divisor=divisor)
    expected = np.array(photo.resize((512 // divisor, 384 // divisor), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - expected).mean() < 3
    part = image.pixels((80, 160, 161, 239), divisor)
    assert part.shape == (round(241 / divisor) - 80 // divisor, round(399 / divisor) - 160 // divisor, 3)
    np.testing.assert_array_equal(part, small[80 // divisor :, 160 // divisor :][: part.shape[0], : part.shape[1]])
    odd = open_image(encoded(noise(501, 375), "JPEG"), "RGB").pixels((370, 490, 5, 11), divisor)
    assert odd.size > 0


# Damage


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_jpeg_is_a_bad_sample(share: float) -> None:
    contents = encoded(noise(200, 100), "JPEG")
    with pytest.raises(BadSampleError, match="not a readable image"):
        read(contents[: int(len(contents) * share)])


def test_a_flaw_that_pillow_overlooks_is_overlooked() -> None:
    contents = encoded(photograph(), "JPEG")
    flawed = contents[:-2] + b"\0\0\0" + contents[-2:]  # bytes between the scan and the end
    np.testing.assert_array_equal(read(flawed), by_pillow(flawed))


@pytest.mark.parametrize("file_format", ["EPS", "TIFF", "PDF"])
def test_formats_that_no_shard_holds_are_not_tried(file_format: str) -> None:
    """Pillow hands PostScript to Ghostscript."""
    with pytest.raises(BadSampleError, match=r"not a readable image \(not JPEG, PNG, WebP, GIF or BMP: begins with"):
        read(encoded(noise(8, 8), file_format))


def test_a_png_that_pillow_refuses_with_a_value_error_is_a_bad_sample() -> None:
    comment = PngInfo()
    comment.add_text("comment", "x" * (PngImagePlugin.MAX_TEXT_CHUNK + 1), zip=True)
    with pytest.raises(BadSampleError, match=r"not a readable image .*too large"):
        read(encoded(noise(4, 4), "PNG", pnginfo=comment))


@settings(max_examples=300)
@given(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "BMP"]), st.booleans(), st.data())
def test_damage_gives_an_image_or_a_bad_sample_and_nothing_else(
    file_format: str, part: bool, drawn: st.DataObject
) -> None:
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    options = {"exif": exif} if file_format in ("JPEG", "PNG", "WEBP") else {}
    contents = bytearray(encoded(noise(16, 16), file_format, **options))
    for _ in range(drawn.draw(st.integers(1, 4))):
        place = drawn.draw(st.one_of(st.integers(0, 60), st.integers(0, len(contents) - 1)))
        contents[place] = drawn.draw(st.integers(0, 255))
    length = drawn.draw(st.one_of(st.just(len(contents)), st.integers(0, len(contents))))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_image(bytes(contents[:length]), "RGB")
            width, height = image.size
            pixels = image.pixels((0, 0, max(height // 2, 1), max(width // 2, 1)) if part else None)
        except BadSampleError:
            return
    assert pixels.ndim == 3


# Decompression bombs: what a header says decides, before anything is decoded


def bomb(file_format: str, width: int, height: int) -> bytes:
    """A tiny image whose header tells of a large one."""
    contents = bytearray(encoded(noise(8, 8), file_format))
    if file_format == "BMP":
        contents[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    elif file_format == "JPEG":
        frame = contents.index(b"\xff\xc0")
        contents[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    else:
        contents[16:24] = width.to_bytes(4, "big") + height.to_bytes(4, "big")
        contents[29:33] = zlib.crc32(bytes(contents[12:29])).to_bytes(4, "big")
    return bytes(contents)


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "BMP"])
@pytest.mark.parametrize(("width", "height"), [(60_000, 60_000), (10_000, 9_000), (65_500, 1_400)])
def test_a_decompression_bomb_is_a_bad_sample(file_format: str, width: int, height: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(BadSampleError, match=r"not a readable image .*decompression bomb"):
            open_image(bomb(file_format, width, height), "RGB")


def peak_megabytes(files: list[bytes], results: Queue) -> None:
    """What a process of its own takes more at its peak, and what it says of the files."""
    torch.set_num_threads(1)  # a fork has no others
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    settings = Data(train_shards="train", val_shards="val")
    errors = []
    for contents in files:
        for transform in (training_transform(settings, 224), evaluation_transform(settings, 224)):
            try:
                assert transform(open_image(contents, "RGB")).shape == (3, 224, 224)
            except BadSampleError as error:
                errors.append(str(error))
    results.put((errors, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024))


def test_bombs_and_images_of_absurd_shape_take_little_memory() -> None:
    """A strip of 65,500 by 3 pixels would be 5.6 million wide once its short side is resized to 256."""
    strips = [encoded(noise(65_500, 3), "JPEG"), encoded(noise(2, 30_000), "PNG")]
    bombs = [bomb("JPEG", 65_500, 65_500), bomb("PNG", 100_000, 100_000)]
    context = get_context("fork")
    results = context.Queue()
    process = context.Process(target=peak_megabytes, args=(strips + bombs, results))
    process.start()
    errors, megabytes = results.get(timeout=60)
    process.join()
    assert len(errors) == 4
    assert megabytes < 100
