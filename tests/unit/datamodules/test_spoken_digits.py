"""The spoken digits: who says them, that no one is in both splits, and the files that come of it."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from configs.problems import DataError
from datamodules import spoken_digits
from datamodules.audio.decoding import Recording
from datamodules.espeak import Espeak
from datamodules.indexing.building import build_index
from datamodules.making.shards import is_built, read_classes
from datamodules.spoken_digits import ACCENTS, TRAIN_SPEAKERS, VALIDATION_SPEAKERS, WORDS, planned
from datamodules.streaming.shard_reader import ShardReader

HASHES = """
import hashlib
from datamodules.espeak import Espeak
from datamodules.spoken_digits import VALIDATION_SPEAKERS, planned, recording
espeak = Espeak()
print(hashlib.sha256(b"".join(recording(espeak, take) for take in planned(VALIDATION_SPEAKERS[:3], 1))).hexdigest())
"""


@pytest.fixture(scope="module")
def espeak() -> Espeak:
    return Espeak()


def test_nobody_is_heard_in_both_splits_and_each_says_each_digit_as_often() -> None:
    assert len({*TRAIN_SPEAKERS, *VALIDATION_SPEAKERS}) == len(TRAIN_SPEAKERS) + len(VALIDATION_SPEAKERS) == 36
    takes = list(planned(VALIDATION_SPEAKERS, 6))
    assert len(takes) == len({take.number for take in takes}) == 600
    assert set(Counter((take.speaker, take.digit) for take in takes).values()) == {6}
    assert set(Counter((take.speaker, take.accent) for take in takes).values()) == {8, 9}


def test_espeak_has_every_voice_and_they_differ(espeak: Espeak) -> None:
    said = {
        espeak.say("zero", voice=f"gmw/en{accent}+{speaker}", words_per_minute=175, pitch=50, seed=1).tobytes()
        for speaker in (*TRAIN_SPEAKERS, *VALIDATION_SPEAKERS)
        for accent in ACCENTS
    }
    assert len(said) == 36 * len(ACCENTS)


def test_speed_is_heard(espeak: Espeak) -> None:
    slow, fast = (len(espeak.say("seven", voice="gmw/en", words_per_minute=n, pitch=50, seed=1)) for n in (120, 220))
    assert slow > 1.3 * fast


def test_a_voice_that_is_not_there_is_an_error(espeak: Espeak) -> None:
    with pytest.raises(DataError, match="espeak-ng has no voice 'gmw/xx'"):
        espeak.say("zero", voice="gmw/xx", words_per_minute=175, pitch=50, seed=1)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, espeak: Espeak, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "soundfile", None)
    with pytest.raises(DataError, match=r"pip install 'effnet\[audio\]'"):
        spoken_digits.build(tmp_path)
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(DataError, match=r"pip install 'effnet\[speech\]'"):
        spoken_digits.build(tmp_path)


def test_a_build_is_whole_labelled_and_of_both_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spoken_digits, "TRAIN_SPEAKERS", TRAIN_SPEAKERS[:3])
    monkeypatch.setattr(spoken_digits, "TRAIN_TAKES", 1)
    monkeypatch.setattr(spoken_digits, "VALIDATION_TAKES", 1)
    done = []
    spoken_digits.build(tmp_path, done.append)
    assert len(done) == 20
    assert is_built(tmp_path)
    assert read_classes(tmp_path) == list(WORDS)
    index = build_index(sorted(tmp_path.glob("spoken-digits-validation-*.tar")), modality="audio")
    reader = ShardReader(index)
    samples = [reader.read(number) for number in range(len(index))]
    assert Counter(sample["__label__"] for sample in samples) == dict.fromkeys(range(10), 10)
    assert all(sample["__key__"].startswith(WORDS[sample["__label__"]]) for sample in samples)
    assert {"wav" in sample for sample in samples} == {True, False}
    for sample in samples:
        recording = Recording(sample.get("wav") or sample["flac"])
        assert recording.rate_hz == 22_050
        assert 0.2 < recording.length / recording.rate_hz < 1.6
        peak = float(np.abs(recording.read(0, recording.length)).max())
        assert 10 ** (-24.1 / 20) < peak < 10 ** (-2.9 / 20)


def test_the_same_bytes_come_of_every_process() -> None:
    command = [sys.executable, "-c", HASHES]
    one, other = (subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2))
    assert one == other
    assert len(one.strip()) == len(hashlib.sha256().hexdigest())
