"""Recordings from bytes: parts of them, and all that is wrong with those that cannot be used."""

import re
import tracemalloc

import numpy as np
import pytest

from datamodules.audio.decoding import Recording
from datamodules.images.decoding import BadSampleError
from tests.unit.recordings import chirp, encoded, flac_that_says, tone

WAV, FLAC = encoded(tone(440)), encoded(tone(440), form="FLAC")


@pytest.mark.parametrize("form", ["WAV", "WAVEX", "RF64", "FLAC"])
def test_a_part_is_the_same_as_that_of_the_whole(form: str) -> None:
    samples = chirp(seconds=12)
    recording = Recording(encoded(samples, form=form))
    assert (recording.rate_hz, recording.length) == (16_000, 192_000)
    assert np.abs(recording.read(150_000, 5_000) - samples[150_000:155_000]).max() <= 1 / 32768
    assert np.abs(recording.read(0, 192_000) - samples).max() <= 1 / 32768


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "ULAW", "IMA_ADPCM"])
def test_any_encoding_of_a_wav_is_read(subtype: str) -> None:
    found = Recording(encoded(tone(440), subtype=subtype)).read(0, 16_000)
    assert np.abs(found - tone(440))[300:].max() < 0.05  # ADPCM begins with too small a step


def test_channels_are_averaged() -> None:
    left, right = tone(440), tone(900)
    found = Recording(encoded(np.stack([left, right, right], axis=1), subtype="FLOAT")).read(0, 16_000)
    assert np.allclose(found, (left + 2 * right) / 3, atol=1e-6)


def test_a_wav_that_was_streamed_without_an_end_is_read() -> None:
    at = WAV.index(b"data") + 4
    streamed = b"RIFF" + b"\xff" * 4 + WAV[8:at] + b"\xff" * 4 + WAV[at + 4 :]
    assert Recording(streamed).length == 16_000


def with_rate(rate_hz: int) -> bytes:
    at = WAV.index(b"fmt ") + 12
    return WAV[:at] + rate_hz.to_bytes(4, "little") + WAV[at + 4 :]


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        (b"", "not WAV or FLAC: empty"),
        (b"\xff\xd8\xff\xe0 a photograph", "not WAV or FLAC: begins with b'\\xff\\xd8\\xff\\xe0 a photograp'"),
        (WAV[:5000], "cut short: 5,000 bytes of the 32,044 that its header says"),
        (FLAC[:2000], "flac decoder lost sync"),
        (FLAC[:20], "unimplemented format"),
        (encoded(np.zeros(0)), "no samples in it"),
        (encoded([0.1, np.nan] * 8000, subtype="FLOAT"), "a sample of nan, where 1 is full scale"),
        (encoded([0.1, -np.inf] * 8000, subtype="FLOAT"), "a sample of inf, where 1 is full scale"),
        (encoded([0.1, 3e38] * 8000, subtype="FLOAT"), "a sample of 3e+38, where 1 is full scale"),
        (encoded([[np.inf, -np.inf]] * 16000, subtype="FLOAT"), "a sample of nan, where 1 is full scale"),
        (flac_that_says(0), "its header does not say how long it is"),
        (flac_that_says(2**36 - 1), "ends before the 68,719,476,735 samples that its header says"),
        (flac_that_says(20_000), "ends before the 20,000 samples that its header says"),
        (with_rate(500), "500 Hz, not 1000 to 400000"),
        (with_rate(2_000_000), "2000000 Hz, not 1000 to 400000"),
        (encoded(np.zeros((100, 65))), "65 channels, at most 64"),
    ],
)
def test_what_cannot_be_used_is_a_bad_sample(contents: bytes, message: str) -> None:
    with pytest.raises(BadSampleError, match=f"not a readable recording .*{re.escape(message)}"):
        read_begin(contents)


def read_begin(contents: bytes) -> None:
    recording = Recording(contents)
    recording.read(0, min(recording.length, 20_000))


def read_middle(contents: bytes, seconds: int = 1) -> np.ndarray:
    recording = Recording(contents)
    count = min(recording.length, seconds * recording.rate_hz)
    return recording.read((recording.length - count) // 2, count)


@pytest.mark.parametrize("says", [40_000, 2**36 - 2])
def test_a_part_that_is_not_there_is_a_bad_sample(says: int) -> None:
    with pytest.raises(BadSampleError, match=f"ends before the {says:,} samples"):
        Recording(flac_that_says(says)).read(20_000, 10)


def test_hours_in_a_small_file_take_the_memory_of_what_is_read() -> None:
    hours = encoded(np.zeros(2 * 3600 * 16_000, dtype=np.int16), form="FLAC")
    assert len(hours) < 1 << 20
    tracemalloc.start()
    found = read_middle(hours)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 16_000
    assert most < 4 << 20


def test_damaged_bytes_never_do_more_than_make_a_sample_bad() -> None:
    rng = np.random.default_rng(0)
    files = [encoded(tone(440, seconds=0.2), form=form) for form in ("WAV", "FLAC")]
    files.append(encoded(tone(440, seconds=0.2), subtype="IMA_ADPCM"))
    outcomes = set()
    for number in range(600):
        contents = bytearray(files[number % len(files)])
        for _ in range(1 + number % 4):
            contents[int(rng.integers(min(len(contents), 96 if number % 2 else len(contents))))] = int(
                rng.integers(256)
            )
        try:
            assert np.isfinite(read_middle(bytes(contents))).all()
            outcomes.add("read")
        except BadSampleError:
            outcomes.add("bad")
    assert outcomes == {"read", "bad"}
