"""Settings of recordings: one case for each check, and what follows from them."""

import pytest

from configs.changes import identity
from configs.checks import cross_problems
from tests.unit.configs.loading import config_of, problems_of

AUDIO = ("data.modality=audio", "model.in_chans=1")
CASES = [
    (("model.in_chans=3",), "model.in_chans", "1 beside data.modality = audio, whose pictures are grey"),
    (
        ("data.audio.window_ms=1000",),
        "data.audio.window_ms",
        "from two samples at 16000 Hz to less than 1.0 s",
    ),
    (("data.audio.window_ms=0.05",), "data.audio.window_ms", "from two samples at 16000 Hz to less than 1.0 s"),
    (
        ("data.audio.hop_ms=30",),
        "data.audio.hop_ms",
        "at most data.audio.window_ms = 25.0: what lies between windows is not heard",
    ),
    (
        ("data.audio.window_ms=800", "data.audio.hop_ms=600", "data.audio.time_masks=0"),
        "data.audio.hop_ms",
        "at most 500, for 2 columns in 1.0 s",
    ),
    (
        ("data.audio.max_frequency_hz=9000",),
        "data.audio.max_frequency_hz",
        "at most 8000, half of data.audio.sample_rate_hz",
    ),
    (
        ("data.audio.min_frequency_hz=8000",),
        "data.audio.min_frequency_hz",
        "less than 8000, where the highest band ends",
    ),
    (
        ("data.audio.mel_bands=256",),
        "data.audio.mel_bands",
        "fewer, a longer data.audio.window_ms or a higher min_frequency_hz: the lowest bands are narrower than the "
        "31.25 Hz between two tones of the Fourier transform, and 25 would be empty",
    ),
    (("data.audio.decibels=[0, 0]",), "data.audio.decibels", "a lower and a higher level, in that order"),
    (
        ("data.audio.time_masks=0", "data.audio.time_mask_frames=3"),
        "data.audio.time_mask_frames",
        "0 or its default, 25: there are no such masks",
    ),
    (
        ("data.audio.frequency_masks=0", "data.audio.frequency_mask_bands=3"),
        "data.audio.frequency_mask_bands",
        "0 or its default, 12: there are no such masks",
    ),
    (("data.audio.time_mask_frames=101",), "data.audio.time_mask_frames", "at most 100, the columns of a picture"),
    (
        ("data.audio.frequency_mask_bands=65",),
        "data.audio.frequency_mask_bands",
        "at most 64, the rows of a picture",
    ),
    (
        ("data.augmentation.enabled=false", "data.audio.gain_db=3"),
        "data.audio.gain_db",
        "0 beside data.augmentation.enabled = false",
    ),
    (
        ("data.augmentation.hflip=0.4",),
        "data.augmentation.hflip",
        "its default, 0.5, beside data.modality = audio: it is for images",
    ),
]


@pytest.mark.parametrize(("overrides", "key", "accepted"), CASES)
def test_settings_that_cannot_work_are_refused(overrides: tuple[str, ...], key: str, accepted: str) -> None:
    problems = problems_of(*AUDIO, *overrides)

    assert list(problems) == [key]
    assert problems[key].accepted == accepted
    assert problems[key].origin == ("command line" if any(key in override for override in overrides) else None)


@pytest.mark.parametrize(
    "override",
    [
        "sample_rate_hz=999",
        "sample_rate_hz=200000",
        "seconds=0",
        "seconds=61",
        "window_ms=0",
        "hop_ms=-1",
        "mel_bands=1",
        "mel_bands=513",
        "min_frequency_hz=-1",
        "max_frequency_hz=0",
        "gain_db=-1",
        "time_masks=-1",
        "time_mask_frames=-1",
        "max_mask_fraction=1.1",
        "mel_band=3",
    ],
)
def test_values_that_mean_nothing_are_refused(override: str) -> None:
    assert list(problems_of(*AUDIO, f"data.audio.{override}")) == [f"data.audio.{override.partition('=')[0]}"]


def test_settings_of_recordings_are_refused_beside_images() -> None:
    problems = problems_of("data.audio.seconds=2")
    assert problems["data.audio.seconds"].accepted == "its default, 1.0, or data.modality = audio"


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("data.audio.time_masks=0", "data.audio.frequency_masks=0"),
        ("data.audio.sample_rate_hz=8000", "data.audio.window_ms=32"),
        ("data.audio.mel_bands=128", "data.audio.window_ms=64"),
        ("data.augmentation.enabled=false",),
        ("data.augmentation.aug_repeats=2", "loss.mixup_alpha=0.2", "data.augmentation.random_erasing_prob=0.2"),
    ],
)
def test_what_works_is_accepted(overrides: tuple[str, ...]) -> None:
    assert not cross_problems(config_of(*AUDIO, *overrides))


def test_sizes_follow_from_seconds_and_rate() -> None:
    audio = config_of(*AUDIO, "data.audio.sample_rate_hz=22050", "data.audio.seconds=0.5").data.audio
    assert (audio.clip_samples, audio.hop_samples, audio.window_samples, audio.fft_samples) == (11_025, 220, 551, 1024)
    assert (audio.frames, audio.highest_frequency_hz) == (50, 11_025.0)


def test_recordings_are_another_experiment_and_images_the_same_as_ever() -> None:
    assert not any(key.startswith("data.audio") for key in identity(config_of()))
    assert identity(config_of(*AUDIO, "data.audio.seconds=2"))["data.audio.seconds"] == 2.0
