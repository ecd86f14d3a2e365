"""A real data set small enough for a laptop: scikit-learn's handwritten digits, as PNG in shards.

1,797 grey images of 8x8 pixels in 17 levels (E. Alpaydin, C. Kaynak, UCI Machine Learning Repository, 1998).
"""

import io
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from configs.problems import DataError
from datamodules.making.shards import Image, write_classes, write_split
from datamodules.streaming.order import permutation

TRAIN_SHARDS, VALIDATION_SHARDS = 16, 4
VALIDATION_SHARE = 0.2
IMAGE_SIZE = 32
SEED = 0


def build(out_dir: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write 16 training and 4 validation shards, each class split alike.

    Raises:
        DataError: If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise DataError("the digits come with scikit-learn: pip install 'effnet[demo]'") from None
    pixels, labels = load_digits(return_X_y=True)
    images = [
        Image(f"digit_{i:04d}", "png", int(label), partial(_png, pixels[i].reshape(8, 8)))
        for i, label in enumerate(labels)
    ]
    train, validation = [], []
    for label in range(10):
        same = [image for image in images if image.label == label]
        shuffled = [same[int(i)] for i in permutation(len(same), SEED, label)]
        cut = round(len(same) * VALIDATION_SHARE)
        validation += shuffled[:cut]
        train += shuffled[cut:]
    write_classes(out_dir, [str(digit) for digit in range(10)])
    write = partial(write_split, out_dir=out_dir, name="digits", seed=SEED, progress=progress)
    write(validation, split="validation", num_shards=VALIDATION_SHARDS)
    write(train, split="train", num_shards=TRAIN_SHARDS)


def _png(levels: NDArray[np.float64]) -> bytes:
    grey = PilImage.fromarray((levels * (255 / 16)).round().astype(np.uint8))
    buffer = io.BytesIO()
    grey.resize((IMAGE_SIZE, IMAGE_SIZE), PilImage.Resampling.BICUBIC).save(buffer, format="PNG")
    return buffer.getvalue()
