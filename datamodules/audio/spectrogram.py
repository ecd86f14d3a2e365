"""From a recording to the picture of it that a network sees: a log-mel spectrogram in 256 levels, one channel.

Time runs to the right, low tones lie at the bottom. Resampling, spectrogram and SpecAugment are torchaudio's.

The picture is finished here and has 8 bits, as a photograph has: what comes after knows nothing of sound. A level is
then 0.4 decibels at the default range of 100; about one is the least that is heard.
"""

import math
from fractions import Fraction
from functools import lru_cache

import torch
from torch.nn import functional
from torchaudio.transforms import AmplitudeToDB, MelSpectrogram, Resample, SpecAugment

from configs.schema import Audio
from datamodules.audio.decoding import Recording

LEVELS = 255
_LARGEST_TERM = 1_000
"""Of the ratio of two sample rates: the resampling filter has as many phases. Other ratios are off by less than a
thousandth, a fiftieth of a semitone."""


class LogMel:
    """Samples to levels.

    Attributes:
        audio: Settings.
    """

    def __init__(self, audio: Audio) -> None:
        self.audio = audio
        self._spectrogram = MelSpectrogram(
            audio.sample_rate_hz,
            n_fft=audio.fft_samples,
            win_length=audio.window_samples,
            hop_length=audio.hop_samples,
            f_min=audio.min_frequency_hz,
            f_max=audio.highest_frequency_hz,
            n_mels=audio.mel_bands,
            normalized="window",
        )
        self._decibels = AmplitudeToDB("power")

    def __call__(self, samples: torch.Tensor) -> torch.Tensor:
        """The levels of a clip, not yet whole numbers.

        Args:
            samples: (samples,) float32.

        Returns:
            (1, mel_bands, frames) float32 in 0..255, the lowest band in the last row.
        """
        low, high = self.audio.decibels
        found = self._decibels(self._spectrogram(samples)[None, :, : self.audio.frames]).flip(1)
        levels: torch.Tensor = ((found - low) * (LEVELS / (high - low))).clamp(0, LEVELS)
        return levels


class Spectrogram:
    """A recording to a picture.

    Attributes:
        image_size: Side of the picture, in pixels.
    """

    def __init__(self, audio: Audio, image_size: int, *, augment: bool) -> None:
        self.audio = audio
        self.image_size = image_size
        self._log_mel = LogMel(audio)
        self._augment = augment
        self._mask = SpecAugment(
            n_time_masks=audio.time_masks,
            time_mask_param=audio.time_mask_frames,
            n_freq_masks=audio.frequency_masks,
            freq_mask_param=audio.frequency_mask_bands,
            p=audio.max_mask_fraction,
        )

    def __call__(self, recording: Recording) -> torch.Tensor:
        """The picture of a clip: of a random one where it is for training, changed at random; else of the middle.

        Draws come from torch's global generator.

        Returns:
            (1, image_size, image_size) uint8.

        Raises:
            BadSampleError: If the recording is damaged.
        """
        levels = self._log_mel(self._clip(recording))
        if self._augment:
            levels = self._mask(levels)
        if levels.shape[1:] != (self.image_size, self.image_size):
            size = (self.image_size, self.image_size)
            levels = functional.interpolate(levels[None], size, mode="bilinear", antialias=True)[0]
        return levels.round().to(torch.uint8)

    def _clip(self, recording: Recording) -> torch.Tensor:
        length = self.audio.clip_samples
        ratio = _ratio(recording.rate_hz, self.audio.sample_rate_hz)
        wanted = math.ceil(length * ratio)
        first = self._place(recording.length - wanted) if recording.length > wanted else 0
        samples = torch.from_numpy(recording.read(first, min(wanted, recording.length)))
        if ratio != 1:
            samples = _resampler(ratio)(samples)
        samples = samples[:length]
        before = self._place(length - len(samples))
        samples = functional.pad(samples, (before, length - len(samples) - before))
        if self._augment and self.audio.gain_db:
            decibels = (2 * torch.rand(()) - 1) * self.audio.gain_db
            samples = samples * 10 ** (decibels / 20)
        return samples

    def _place(self, room: int) -> int:
        return int(torch.randint(room + 1, ())) if self._augment else room // 2


def _ratio(rate_hz: int, wanted_hz: int) -> Fraction:
    """Samples for each one that is wanted, in small whole numbers."""
    ratio = Fraction(rate_hz, wanted_hz)
    return ratio.limit_denominator(_LARGEST_TERM) if ratio < 1 else 1 / (1 / ratio).limit_denominator(_LARGEST_TERM)


@lru_cache(maxsize=16)
def _resampler(ratio: Fraction) -> Resample:
    return Resample(ratio.numerator, ratio.denominator)
