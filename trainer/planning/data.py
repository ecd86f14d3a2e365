"""How many samples a run has and what they weigh: by their index, by a list of shards, or by their name."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from configs.problems import ConfigError, DataError, Problem, UnreachableError
from configs.schema import Data
from datamodules.indexing.index_files import beside, index_file, load_index
from datamodules.indexing.urls import find_shards
from datamodules.storage.remote import Remote

PHOTOGRAPH_BYTES: Final = 112_000
"""Of an ImageNet JPEG in a shard: 140 MB in 1,251 samples."""
IMAGENET: Final = (1_281_167, 50_000)
"""Images for training and validation of ImageNet-1k (Russakovsky et al., IJCV 2015, table 2)."""
DIGITS: Final = (1_438, 359)
"""As `datamodules.digits` splits them."""
DIGIT_BYTES: Final = 2_048
"""A PNG and its label: two headers and two blocks of a tar file."""
PYTHON_TEXTS: Final = (2_312, 480)
"""As `datamodules.python_texts` splits those of Python 3.11; other versions have a few more or less."""
TEXT_BYTES: Final = 2_560
"""A passage and its label: two headers and three blocks of a tar file."""
SPOKEN_DIGITS: Final = (2_860, 600)
"""As `datamodules.spoken_digits` says them."""
SPOKEN_DIGIT_BYTES: Final = 21_600
"""A recording and its label, on average."""
ATTEMPTS, TIMEOUT_S = 1, 10.0
"""Of a server that is asked for a list of shards: a plan does not wait."""


@dataclass(frozen=True, kw_only=True)
class Samples:
    """What there is of data.

    Attributes:
        training: Samples of an epoch.
        validation: Samples of the validation split; 0 where that is not known.
        bytes_each: Mean size of a training sample in its shard.
        source: Where these figures are from.
    """

    training: int
    validation: int
    bytes_each: float
    source: str


def find_samples(data: Data, given: int | None) -> Samples:
    """What the user says, else the index, else a list of shards, else what is known of the data set.

    Nothing is scanned and nothing written.

    Args:
        data: Names the shards.
        given: Training samples by the user.

    Raises:
        ConfigError: If nothing says how many there are.
    """
    training, validation = _split(data, data.train_shards), _split(data, data.val_shards)
    size = training[1] if training is not None and training[1] else None
    if given is not None:
        counted = validation[0] if validation is not None else 0
        return Samples(training=given, validation=counted, bytes_each=size or PHOTOGRAPH_BYTES, source="--samples")
    if training is not None:
        source = "the index of data.train_shards" if size else "the list of data.train_shards"
        counted = validation[0] if validation is not None else 0
        return Samples(training=training[0], validation=counted, bytes_each=size or PHOTOGRAPH_BYTES, source=source)
    if data.prepare == "digits":
        return Samples(training=DIGITS[0], validation=DIGITS[1], bytes_each=DIGIT_BYTES, source="scikit-learn's digits")
    if data.prepare == "python-texts":
        training_texts, validation_texts = PYTHON_TEXTS
        source = "the texts of Python 3.11"
        return Samples(training=training_texts, validation=validation_texts, bytes_each=TEXT_BYTES, source=source)
    if data.prepare == "spoken-digits":
        said, heard = SPOKEN_DIGITS
        return Samples(training=said, validation=heard, bytes_each=SPOKEN_DIGIT_BYTES, source="espeak-ng's digits")
    if data.num_classes == 1000 and "imagenet" in str(data.train_shards).lower():
        source = "ImageNet-1k, by the name of data.train_shards"
        return Samples(training=IMAGENET[0], validation=IMAGENET[1], bytes_each=PHOTOGRAPH_BYTES, source=source)
    accepted = "a number: data.train_shards has no index here (effnet shards index makes it)"
    raise ConfigError([Problem(key="--samples", received="nothing", accepted=accepted)])


def _split(data: Data, shards: str | Sequence[str]) -> tuple[int, float] | None:
    """Samples and their mean size, which is 0 where a list says how many alone; None where nothing is found."""
    try:
        found = find_shards(shards, Remote(attempts=ATTEMPTS, timeout_s=TIMEOUT_S))
    except (DataError, UnreachableError):
        return None
    index_dir, modality = data.index_dir, data.modality
    near = beside(found.shards, modality) if index_dir is None else None
    places = [near, index_file(found.shards, index_dir, modality)]
    for place in filter(None, places):
        index = load_index(found.shards, place, modality)
        if index is not None and len(index):
            return len(index), float(index.sizes.mean())
    if found.expected.keys() >= set(found.shards):
        return sum(expected.samples for expected in found.expected.values()), 0.0
    return None
