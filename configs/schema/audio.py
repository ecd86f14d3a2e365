"""Settings of samples that are recordings: the part that is heard, its spectrogram, what is random in training."""

from typing import Annotated

from pydantic import Field

from configs.schema.section import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, Section


class Audio(Section):
    """How a recording becomes the picture that the network sees: a log-mel spectrogram; `data.modality: audio` only.

    A picture is a clip: time to the right, mel bands upwards, loudness as levels of grey. It is resized to the square
    of `data.image_size`; where that has `mel_bands` and `seconds` / `hop_ms` for sides, nothing is lost. In training
    the clip is a random one of its recording, in evaluation the middle one; a shorter recording stands in silence, at
    a random place or in the middle. `data.augmentation.enabled: false` turns all that is random off.
    """

    sample_rate_hz: Annotated[int, Field(ge=1_000, le=192_000)] = 16_000
    """Recordings of another rate are resampled; tones above half of it are not heard. Channels are averaged."""
    seconds: Annotated[float, Field(gt=0, le=60)] = 1.0
    """Length of a clip."""
    window_ms: PositiveFloat = 25.0
    """Length of the Hann window of each column; Fourier transforms take the next power of two of samples."""
    hop_ms: PositiveFloat = 10.0
    """Time from a column to the next."""
    mel_bands: Annotated[int, Field(ge=2, le=512)] = 64
    """Rows: triangular filters that are as far apart on the mel scale (HTK's formula)."""
    min_frequency_hz: NonNegativeFloat = 20.0
    """Lower edge of the lowest band."""
    max_frequency_hz: PositiveFloat | None = None
    """Upper edge of the highest band; None is half of `sample_rate_hz`."""
    decibels: tuple[float, float] = (-80.0, 20.0)
    """Loudness that is drawn black, and white. A tone of full scale has about 19 with a window of 25 ms at 16 kHz, and
    white noise of full scale 0 in a band as wide as one step of the Fourier transform."""
    gain_db: NonNegativeFloat = 0.0
    """Training: most that a clip is made louder or softer, drawn evenly; 0 is off."""
    time_masks: NonNegativeInt = 2
    """Training, SpecAugment (Park et al., arXiv 1904.08779): times that a random part of the columns is blanked with
    the picture's mean. Its time warping, which gains least there, is left out."""
    time_mask_frames: NonNegativeInt = 25
    """Columns that a mask has fewer than, drawn evenly from 0. 0 is off."""
    frequency_masks: NonNegativeInt = 2
    """Training, SpecAugment: times that a random part of the rows is blanked."""
    frequency_mask_bands: NonNegativeInt = 12
    """Rows that a mask has fewer than, drawn evenly from 0. 0 is off."""
    max_mask_fraction: Fraction = 1.0
    """Share of all columns, and of all rows, that one mask has fewer than (Park et al.'s p)."""

    @property
    def clip_samples(self) -> int:
        """Samples of a clip."""
        return round(self.seconds * self.sample_rate_hz)

    @property
    def hop_samples(self) -> int:
        """Samples from a column to the next."""
        return max(round(self.hop_ms * self.sample_rate_hz / 1000), 1)

    @property
    def window_samples(self) -> int:
        """Samples under a window."""
        return max(round(self.window_ms * self.sample_rate_hz / 1000), 1)

    @property
    def fft_samples(self) -> int:
        """Samples of a Fourier transform."""
        return 1 << (self.window_samples - 1).bit_length()

    @property
    def frames(self) -> int:
        """Columns of a picture."""
        return self.clip_samples // self.hop_samples

    @property
    def highest_frequency_hz(self) -> float:
        """Upper edge of the highest band."""
        return self.sample_rate_hz / 2 if self.max_frequency_hz is None else self.max_frequency_hz
