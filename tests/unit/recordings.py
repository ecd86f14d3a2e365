"""Recordings for tests, as libsndfile writes them."""

import io
from functools import partial
from typing import Any

import numpy as np
import soundfile

from datamodules.making.shards import Image

RATE_HZ = 16_000


def encoded(samples: Any, *, rate_hz: int = RATE_HZ, form: str = "WAV", subtype: str | None = None) -> bytes:
    """A file of ``samples``, (samples,) or (samples, channels), floats in -1..1 or int16."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.asarray(samples), rate_hz, format=form, subtype=subtype)
    return buffer.getvalue()


def tone(frequency_hz: float, *, seconds: float = 1.0, rate_hz: int = RATE_HZ, peak: float = 0.5) -> np.ndarray:
    return peak * np.sin(2 * np.pi * frequency_hz * np.arange(round(seconds * rate_hz)) / rate_hz)


def chirp(*, seconds: float, rate_hz: int = RATE_HZ) -> np.ndarray:
    """A tone that rises from 200 Hz to 5 kHz: no two parts of it sound alike."""
    times = np.arange(round(seconds * rate_hz)) / rate_hz
    return 0.5 * np.sin(2 * np.pi * (200 * times + 4800 / seconds * times**2 / 2))


def flac_that_says(length: int) -> bytes:
    """A FLAC of a second whose header has another number of samples: 36 bits of STREAMINFO (RFC 9639, 8.2)."""
    contents = bytearray(encoded(tone(440), form="FLAC"))
    contents[21] = contents[21] & 0xF0 | length >> 32
    contents[22:26] = (length & 0xFFFFFFFF).to_bytes(4, "big")
    return bytes(contents)


def sound(number: int) -> bytes:
    """Half a second, the tone of its class (number mod 4) in noise of its own; every other one a WAV."""
    noise = np.random.default_rng(number).standard_normal(RATE_HZ // 2) * 0.02
    samples = tone(300.0 * 2 ** (number % 4), seconds=0.5, peak=0.3) + noise
    return encoded(samples, form="FLAC" if number % 2 else "WAV")


def recording_samples(count: int, first: int = 0) -> list[Image]:
    return [
        Image(f"sound_{i:05d}", "flac" if i % 2 else "wav", i % 4, partial(sound, i))
        for i in range(first, first + count)
    ]
