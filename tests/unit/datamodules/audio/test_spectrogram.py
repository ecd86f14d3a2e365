"""Pictures of recordings: their numbers beside the formulas written out, what is heard, what is random, SpecAugment."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torchaudio.functional import melscale_fbanks

from configs.checks.audio import empty_bands
from configs.schema import Audio
from datamodules.audio.decoding import Recording
from datamodules.audio.spectrogram import LogMel, Spectrogram
from datamodules.images.decoding import BadSampleError
from datamodules.streaming.randomness import seed_everything
from tests.unit.recordings import chirp, encoded, tone

MASKLESS: dict[str, Any] = {"time_masks": 0, "frequency_masks": 0}
PLAIN = Audio(**MASKLESS)


def reference(samples: np.ndarray, audio: Audio) -> np.ndarray:
    """Levels by the formulas: mirrored ends, Hann, power by the window's energy, HTK's triangles, decibels, scale."""
    window, size, hop = audio.window_samples, audio.fft_samples, audio.hop_samples
    mirrored = np.pad(samples, size // 2, mode="reflect")
    hann = np.zeros(size)
    hann[(size - window) // 2 :][:window] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    columns = np.stack([mirrored[at * hop : at * hop + size] * hann for at in range(audio.frames)], axis=1)
    power = np.abs(np.fft.rfft(columns, axis=0)) ** 2 / np.sum(hann**2)
    frequencies = np.arange(size // 2 + 1) * audio.sample_rate_hz / size
    low, high = (2595 * np.log10(1 + f / 700) for f in (audio.min_frequency_hz, audio.highest_frequency_hz))
    edges = 700 * (10 ** (np.linspace(low, high, audio.mel_bands + 2) / 2595) - 1)
    bands = []
    for left, middle, right in zip(edges, edges[1:], edges[2:], strict=False):
        rising, falling = (frequencies - left) / (middle - left), (right - frequencies) / (right - middle)
        bands.append(np.maximum(0, np.minimum(rising, falling)) @ power)
    decibels = 10 * np.log10(np.maximum(np.stack(bands[::-1]), 1e-10))
    bottom, top = audio.decibels
    return np.clip((decibels - bottom) / (top - bottom), 0, 1) * 255


@pytest.mark.parametrize(
    "audio",
    [
        PLAIN,
        Audio(sample_rate_hz=8000, seconds=0.5, window_ms=32.0, hop_ms=8.0, mel_bands=40, min_frequency_hz=100.0),
        Audio(sample_rate_hz=44_100, window_ms=30.0, hop_ms=12.5, mel_bands=80, max_frequency_hz=8000.0),
        Audio(decibels=(-100.0, 30.0)),
    ],
)
def test_levels_are_those_of_the_formulas(audio: Audio) -> None:
    noise = np.random.default_rng(0).standard_normal(audio.clip_samples) * 0.01
    rising = chirp(seconds=audio.seconds, rate_hz=audio.sample_rate_hz)[: audio.clip_samples]
    for samples in (noise + rising, noise, np.zeros(audio.clip_samples)):
        found = LogMel(audio)(torch.tensor(samples, dtype=torch.float32))
        assert found.shape == (1, audio.mel_bands, audio.frames)
        assert np.abs(found[0].numpy() - reference(samples, audio)).max() < 0.05


@pytest.mark.parametrize(("bands", "expected"), [(64, 0), (120, 0), (128, 1), (256, 25), (512, 148)])
def test_bands_in_which_nothing_lies_are_counted_before_they_are_drawn(bands: int, expected: int) -> None:
    audio = Audio(mel_bands=bands)
    weights = melscale_fbanks(
        audio.fft_samples // 2 + 1, audio.min_frequency_hz, audio.highest_frequency_hz, bands, audio.sample_rate_hz
    )
    assert int((weights.amax(dim=0) == 0).sum()) == empty_bands(audio) == expected


def picture(samples: Any, audio: Audio = PLAIN, *, rate_hz: int = 16_000, size: int = 64, augment: bool = False) -> Any:
    contents = encoded(samples, rate_hz=rate_hz, subtype="FLOAT")
    return Spectrogram(audio, size, augment=augment)(Recording(contents))


def test_high_tones_lie_above_low_ones_and_time_runs_to_the_right() -> None:
    found = picture(np.concatenate([tone(300, seconds=0.5), tone(4000, seconds=0.5)]))
    assert found.shape == (1, 64, 64)
    assert found.dtype == torch.uint8
    before, after = found[0, :, 16].argmax(), found[0, :, 48].argmax()
    assert before > 48 > 24 > after


@pytest.mark.parametrize("rate_hz", [8000, 11_025, 22_050, 44_100, 44_101, 48_000, 399_999])
def test_a_recording_sounds_alike_at_any_rate(rate_hz: int) -> None:
    expected = picture(tone(1000)).float()
    found = picture(tone(1000, rate_hz=rate_hz), rate_hz=rate_hz).float()
    loud = expected > 128
    assert loud.sum() > 64
    assert (found - expected)[loud].abs().mean() < 2


def test_the_middle_is_heard_in_evaluation_and_silence_is_around_what_is_short() -> None:
    rising = chirp(seconds=5)
    assert torch.equal(picture(rising), picture(rising[2 * 16_000 : 3 * 16_000]))
    short = picture(tone(1000, seconds=0.5))[0].max(dim=0).values
    assert (short[:12] == 0).all()
    assert (short[52:] == 0).all()
    assert (short[20:44] > 128).all()


def drawn(audio: Audio, samples: Any, seeds: range = range(40)) -> Iterator[torch.Tensor]:
    contents, draw = encoded(samples, subtype="FLOAT"), Spectrogram(audio, 64, augment=True)
    for seed in seeds:
        seed_everything(seed)
        yield draw(Recording(contents))


def test_training_hears_any_part_and_finds_short_ones_anywhere() -> None:
    rows = [int(found[0, :, 32].argmax()) for found in drawn(PLAIN, chirp(seconds=5))]
    assert max(rows) - min(rows) > 30
    begins = [int((found[0].max(dim=0).values > 128).int().argmax()) for found in drawn(PLAIN, tone(1000, seconds=0.5))]
    assert min(begins) < 4
    assert max(begins) > 28


def test_the_same_seed_draws_the_same_picture() -> None:
    audio = Audio(gain_db=6.0)
    first, again = ([*drawn(audio, chirp(seconds=2), range(5))] for _ in range(2))
    assert all(map(torch.equal, first, again))
    assert not torch.equal(first[0], first[1])


def test_gain_moves_all_levels_by_as_much_as_was_drawn() -> None:
    samples = np.random.default_rng(0).standard_normal(16_000) * 0.05
    plain = picture(samples).float()
    moved = [
        (found.float() - plain).mean().item() * 80 / 255 for found in drawn(Audio(**MASKLESS, gain_db=6.0), samples)
    ]
    assert -6 <= min(moved) < -4
    assert 4 < max(moved) <= 6


@pytest.mark.parametrize(("masked", "axis"), [("time", 2), ("frequency", 1)])
def test_specaugment_blanks_whole_columns_and_rows_with_the_mean(masked: str, axis: int) -> None:
    names = ("time_masks", "time_mask_frames") if masked == "time" else ("frequency_masks", "frequency_mask_bands")
    audio = Audio(seconds=0.64, **MASKLESS | dict(zip(names, (1, 16), strict=True)))
    samples = np.random.default_rng(0).standard_normal(audio.clip_samples) * 0.05
    plain = picture(samples, audio)
    mean = round(plain.float().mean().item())
    widths = []
    for found in drawn(audio, samples):
        changed = (found != plain).any(dim=3 - axis)[0]
        lines = found[0].T if axis == 2 else found[0]
        width = int(changed.sum())
        widths.append(width)
        if width:
            at = changed.nonzero().flatten()
            assert int(at[-1] - at[0]) == width - 1  # one mask, without a gap
            assert lines[at].unique().numel() == 1
            assert abs(int(lines[at][0, 0]) - mean) <= 1
    assert 0 <= min(widths) < 4
    assert 10 < max(widths) < 16


def test_masks_are_as_many_as_wanted_and_no_wider_than_their_share() -> None:
    samples = np.random.default_rng(0).standard_normal(16_000) * 0.05
    audio = Audio(seconds=0.64, time_masks=3, time_mask_frames=64, frequency_masks=0, max_mask_fraction=0.1)
    plain = picture(samples[: audio.clip_samples], audio)
    widths = [
        int((found != plain).any(dim=1).sum()) for found in drawn(audio, samples[: audio.clip_samples], range(60))
    ]
    assert 10 < max(widths) <= 3 * 6


def test_without_augmentation_masks_do_nothing() -> None:
    samples = chirp(seconds=3)
    assert torch.equal(picture(samples, Audio(gain_db=6.0)), picture(samples))


def test_a_picture_has_the_size_that_is_wanted() -> None:
    small, large = picture(chirp(seconds=1), size=32), picture(chirp(seconds=1), size=128)
    assert small.shape == (1, 32, 32)
    assert large.shape == (1, 128, 128)
    halved = torch.nn.functional.avg_pool2d(large.float(), 4)
    assert (halved - small.float()).abs().mean() < 6


def test_damage_behind_the_header_is_a_bad_sample() -> None:
    contents = encoded(chirp(seconds=3), form="FLAC")
    with pytest.raises(BadSampleError, match="not a readable recording"):
        Spectrogram(PLAIN, 64, augment=False)(Recording(contents[: len(contents) // 3]))
