"""From the bytes of a recording to samples: what the file holds decides, never its name.

libsndfile decodes, of a file in memory only the part that is asked for: a FLAC of a kilobyte may hold hours of silence.
Nothing is decoded before the header has said what to expect. Imports no torch.
"""

import io
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from datamodules.images.decoding import BadSampleError

try:
    import soundfile
except (ImportError, OSError) as error:  # OSError: the package is there, libsndfile is not
    raise DataError(f"recordings need the extra audio ({error}): pip install 'effnet[audio]'") from None

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 400_000
MAX_CHANNELS = 64
_BEGINNINGS = {b"RIFF": "WAV", b"RIFX": "WAV", b"RF64": "WAV", b"fLaC": "FLAC"}
"""What a recording may be, whatever its name says. libsndfile knows some thirty formats more."""
MAX_PEAK = 1e6
"""Floats may be out of -1..1; far out they are no sound, and their squares no floats."""
_BLOCK = 1 << 16
_UNKNOWN = 1 << 36
"""Samples that no FLAC can have: libsndfile's word for one that does not say how many it has."""
_OPEN_END = (0, 0x7FFFFFFF, 0xFFFFFFFF)
"""Sizes that programs write to a WAV of which they do not know the end yet; some never come back to it."""

Samples = NDArray[np.float32]
"""(samples,), in -1..1 but where a file of floats says otherwise."""


class Recording:
    """A recording of which the header has been read.

    Attributes:
        form: `WAV PCM_16` and the like, in libsndfile's words.
        rate_hz: Samples a second.
        length: Samples of each channel, as the header says.
    """

    def __init__(self, data: bytes) -> None:
        beginning = data[:4]
        if beginning not in _BEGINNINGS:
            found = f"begins with {data[:16]!r}" if data else "empty"
            raise BadSampleError(f"not a readable recording (not WAV or FLAC: {found})")
        _check_whole(data)
        try:
            self._file: Any = soundfile.SoundFile(io.BytesIO(data))
        except (soundfile.SoundFileError, ValueError) as error:
            raise BadSampleError(f"not a readable recording ({_words(error)})") from None
        self.form = f"{self._file.format} {self._file.subtype}"
        self.rate_hz: int = self._file.samplerate
        self.length: int = self._file.frames
        if not MIN_RATE_HZ <= self.rate_hz <= MAX_RATE_HZ:
            raise BadSampleError(f"not a readable recording ({self.rate_hz} Hz, not {MIN_RATE_HZ} to {MAX_RATE_HZ})")
        if self._file.channels > MAX_CHANNELS:
            raise BadSampleError(f"not a readable recording ({self._file.channels} channels, at most {MAX_CHANNELS})")
        if self.length <= 0:
            raise BadSampleError("not a readable recording (no samples in it)")
        if self.length >= _UNKNOWN:
            raise BadSampleError("not a readable recording (its header does not say how long it is)")

    def read(self, first: int, count: int) -> Samples:
        """Decode a part, the average of all channels.

        Args:
            first: Number of its first sample.
            count: Samples of it.

        Raises:
            BadSampleError: If it is damaged, ends before, or has numbers that are none.
        """
        try:
            samples = np.concatenate(list(self._blocks(first, count)))
        except (soundfile.SoundFileError, ValueError, OverflowError) as error:
            said = f"damaged, or ends before the {self.length:,} samples that its header says: {_words(error)}"
            raise BadSampleError(f"not a readable recording ({said})") from None
        peak = float(np.abs(samples).max())
        if not peak <= MAX_PEAK:  # nor is NaN
            raise BadSampleError(f"not a readable recording (a sample of {peak:g}, where 1 is full scale)")
        return samples

    def _blocks(self, first: int, count: int) -> Iterator[Samples]:
        if self._file.tell() != first:
            self._file.seek(first)
        while count:
            block: Samples = self._file.read(min(count, _BLOCK), dtype="float32", always_2d=True)
            if not len(block):
                raise ValueError("no more samples")
            with np.errstate(invalid="ignore", over="ignore"):
                yield block.mean(axis=1, dtype=np.float32)
            count -= len(block)


def _check_whole(data: bytes) -> None:
    """A WAV that was cut short: libsndfile takes it for a shorter one."""
    if not data.startswith((b"RIFF", b"RIFX")):
        return
    size = int.from_bytes(data[4:8], "little" if data.startswith(b"RIFF") else "big")
    if size not in _OPEN_END and size + 8 > len(data) + size % 2:
        raise BadSampleError(
            f"not a readable recording (cut short: {len(data):,} bytes of the {size + 8:,} that its header says)"
        )


def _words(error: Exception) -> str:
    return str(error).rpartition(">: ")[2].rstrip(".")  # soundfile names the object before libsndfile's own words
