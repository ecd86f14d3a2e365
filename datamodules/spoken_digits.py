"""Spoken digits: a data set of recordings that a laptop makes in a minute, WAV and FLAC in shards.

espeak-ng says the ten digits in seven accents of English, with other speakers for validation than for training: nobody
in the one is ever heard in the other. How fast and how high is drawn, as are loudness, silence around the word and
noise behind it. Imports no torch.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from datamodules.espeak import Espeak
from datamodules.making.shards import Image, write_classes, write_split

TRAIN_SHARDS, VALIDATION_SHARDS = 16, 4
TRAIN_TAKES, VALIDATION_TAKES = 11, 6
"""Of each digit by each speaker, each in another accent, and so on."""
SEED = 0
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
ACCENTS = ("", "-029", "-GB-scotland", "-GB-x-gbclan", "-GB-x-gbcwmd", "-GB-x-rp", "-US")
"""Of espeak-ng's English: British, Caribbean, Scottish, Lancastrian, West Midlands, RP, American."""
TRAIN_SPEAKERS = (
    *("m1", "m2", "m3", "m5", "m7", "f1", "f2", "f4"),
    *("Alex", "Alicia", "Andy", "Annie", "Denis", "Diogo", "Gene", "Hugo", "Jacky", "Lee", "Marco", "Michael"),
    *("adam", "anika", "aunty", "belinda", "boris", "grandma"),
)
VALIDATION_SPEAKERS = ("m4", "m6", "f3", "f5", "Andrea", "Reed", "edward", "linda", "steph", "victor")
WORDS_PER_MINUTE = (120, 220)
PITCH = (0, 100)
LOUDNESS_DB = (-24.0, -3.0)
"""Of the loudest sample, below full scale."""
SIGNAL_TO_NOISE_DB = (10.0, 40.0)
LONGEST_SILENCE_S = 0.25


class Take(NamedTuple):
    """One word that is said, and the number that all else about it is drawn from."""

    digit: int
    speaker: str
    accent: str
    number: int


def build(out_dir: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write 16 training and 4 validation shards: 2,860 and 600 recordings.

    Raises:
        DataError: If espeak-ng or the extra `audio` is not installed.
    """
    espeak = Espeak()
    write_classes(out_dir, WORDS)
    for split, speakers, takes, num_shards in (
        ("validation", VALIDATION_SPEAKERS, VALIDATION_TAKES, VALIDATION_SHARDS),
        ("train", TRAIN_SPEAKERS, TRAIN_TAKES, TRAIN_SHARDS),
    ):
        recordings = [
            Image(
                f"{WORDS[take.digit]}_{take.speaker}_{take.number:04d}",
                "flac" if take.number % 3 else "wav",
                take.digit,
                partial(recording, espeak, take),
            )
            for take in planned(speakers, takes)
        ]
        write_split(
            recordings,
            out_dir,
            name="spoken-digits",
            split=split,
            num_shards=num_shards,
            seed=SEED,
            progress=progress,
        )


def planned(speakers: Sequence[str], takes: int) -> Iterator[Take]:
    """Who says what, and in which accent: each speaker says each digit as often, the accents in turn."""
    number = 0
    for speaker in speakers:
        for digit in range(len(WORDS)):
            for _ in range(takes):
                yield Take(digit, speaker, ACCENTS[number % len(ACCENTS)], number)
                number += 1


def recording(espeak: Espeak, take: Take) -> bytes:
    """The file of one take: 16 bits, one channel, at espeak-ng's own rate."""
    rng = np.random.default_rng((SEED, *take.speaker.encode(), take.number))
    said = espeak.say(
        WORDS[take.digit],
        voice=f"gmw/en{take.accent}+{take.speaker}",
        words_per_minute=int(rng.integers(*WORDS_PER_MINUTE)),
        pitch=int(rng.integers(*PITCH)),
        seed=int(rng.integers(1 << 31)),
    )
    return _encoded(_in_a_room(said, espeak.rate_hz, rng), espeak.rate_hz, "FLAC" if take.number % 3 else "WAV")


def _in_a_room(said: NDArray[np.int16], rate_hz: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """The word in silence of random length, with noise between white and brown behind it, at a random loudness."""
    before, after = rng.integers(0, round(LONGEST_SILENCE_S * rate_hz), size=2)
    word = np.pad(said / np.abs(said).max(), (before, after))
    spectrum = np.fft.rfft(rng.standard_normal(len(word)))
    noise = np.fft.irfft(spectrum / np.arange(1, len(spectrum) + 1) ** rng.uniform(0, 1), len(word))
    share = 10 ** (-rng.uniform(*SIGNAL_TO_NOISE_DB) / 20)
    noisy = word + noise * (share * np.std(said / np.abs(said).max()) / np.std(noise))
    loudness: float = 10 ** (rng.uniform(*LOUDNESS_DB) / 20)
    found: NDArray[np.float64] = noisy / np.abs(noisy).max() * loudness
    return found


def _encoded(samples: NDArray[np.float64], rate_hz: int, form: str) -> bytes:
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise DataError(f"recordings need the extra audio ({error}): pip install 'effnet[audio]'") from None
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, rate_hz, format=form, subtype="PCM_16")
    return buffer.getvalue()
