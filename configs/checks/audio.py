"""Settings of recordings that are valid alone and not together."""

import math
from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem
from configs.schema import Audio, Config

MIN_FRAMES = 2


def audio_problems(config: Config) -> Iterator[Problem]:
    """Spectrograms that cannot be drawn, or have parts in which there is never anything; masks without effect."""
    if config.data.modality == "audio":
        yield from _spectrogram_problems(config)
        yield from _mask_problems(config)


def _spectrogram_problems(config: Config) -> Iterator[Problem]:
    audio = config.data.audio
    if audio.window_samples < 2 or audio.window_samples >= audio.clip_samples:
        accepted = f"from two samples at {audio.sample_rate_hz} Hz to less than {audio.seconds} s"
        yield problem_with(config, "data.audio.window_ms", accepted, "data.audio.seconds", "data.audio.sample_rate_hz")
    elif audio.hop_samples > audio.window_samples:
        accepted = f"at most data.audio.window_ms = {audio.window_ms}: what lies between windows is not heard"
        yield problem_with(config, "data.audio.hop_ms", accepted, "data.audio.window_ms")
    elif audio.frames < MIN_FRAMES:
        accepted = f"at most {audio.seconds * 1000 / MIN_FRAMES:g}, for {MIN_FRAMES} columns in {audio.seconds} s"
        yield problem_with(config, "data.audio.hop_ms", accepted, "data.audio.seconds")
    highest = audio.sample_rate_hz / 2
    if audio.highest_frequency_hz > highest:
        accepted = f"at most {highest:g}, half of data.audio.sample_rate_hz"
        yield problem_with(config, "data.audio.max_frequency_hz", accepted, "data.audio.sample_rate_hz")
    elif audio.min_frequency_hz >= audio.highest_frequency_hz:
        accepted = f"less than {audio.highest_frequency_hz:g}, where the highest band ends"
        yield problem_with(config, "data.audio.min_frequency_hz", accepted, "data.audio.max_frequency_hz")
    elif audio.window_samples > 1:
        empty = empty_bands(audio)
        if empty:
            step = audio.sample_rate_hz / audio.fft_samples
            accepted = (
                f"fewer, a longer data.audio.window_ms or a higher min_frequency_hz: the lowest bands are narrower "
                f"than the {step:g} Hz between two tones of the Fourier transform, and {empty} would be empty"
            )
            beside = ("data.audio.window_ms", "data.audio.min_frequency_hz", "data.audio.max_frequency_hz")
            yield problem_with(config, "data.audio.mel_bands", accepted, *beside)
    low, high = audio.decibels
    if low >= high:
        yield problem_with(config, "data.audio.decibels", "a lower and a higher level, in that order")


def _mask_problems(config: Config) -> Iterator[Problem]:
    audio = config.data.audio
    for count, width, sides, limit in (
        ("time_masks", "time_mask_frames", "columns", audio.frames),
        ("frequency_masks", "frequency_mask_bands", "rows", audio.mel_bands),
    ):
        key, beside = f"data.audio.{width}", f"data.audio.{count}"
        default = Audio.model_fields[width].default
        if not getattr(audio, count) and getattr(audio, width) not in (0, default):
            accepted = f"0 or its default, {default}: there are no such masks"
            yield problem_with(config, key, accepted, beside)
        elif getattr(audio, count) and getattr(audio, width) > limit:
            accepted = f"at most {limit}, the {sides} of a picture"
            yield problem_with(config, key, accepted, "data.audio.seconds", "data.audio.hop_ms", "data.audio.mel_bands")
    if not config.data.augmentation.enabled and audio.gain_db:
        accepted = "0 beside data.augmentation.enabled = false"
        yield problem_with(config, "data.audio.gain_db", accepted, "data.augmentation.enabled")


def empty_bands(audio: Audio) -> int:
    """Bands in whose triangle no tone of the Fourier transform lies.

    Source: HTK's mel scale, 2595 log10(1 + f / 700) (Young et al., The HTK Book, 5.4); torchaudio's melscale_fbanks.
    """
    low, high = (2595 * math.log10(1 + f / 700) for f in (audio.min_frequency_hz, audio.highest_frequency_hz))
    bands = audio.mel_bands
    edges = [700 * (10 ** ((low + (high - low) * i / (bands + 1)) / 2595) - 1) for i in range(bands + 2)]
    step = audio.sample_rate_hz / audio.fft_samples
    return sum((math.floor(edges[i] / step) + 1) * step >= edges[i + 2] for i in range(bands))
