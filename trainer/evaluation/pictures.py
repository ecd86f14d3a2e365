"""Single predictions as a person looks at them: image, label, what it was taken for, and where the sample lies."""

import hashlib
import io
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from configs.files import write_atomically
from configs.problems import DataError, UnreachableError
from datamodules.indexing.index import ShardIndex
from datamodules.storage.cache import ShardCache
from datamodules.streaming.shard_reader import ShardReader
from trainer.evaluation.extremes import Examples
from trainer.evaluation.samples import Outputs

TINY = 64
"""Pixels of the longer side up to which a picture is a PNG; of more a JPEG, unless it has an alpha channel."""
JPEG_QUALITY = 85
KEYS_S = 20.0
"""Longest that a slow server is asked for keys: at a run's end its scheduler may wait for rank 0 alone."""


@dataclass(frozen=True, kw_only=True)
class Example:
    """One sample, and what a network says of it.

    Attributes:
        sample: Its number in the split.
        shard: Path or URL.
        key: Of the sample in its shard; None where that could not be read.
        label: As the shards say.
        predicted: The most likely class.
        confidence: In 0..1, softmax of that.
        label_probability: In 0..1, softmax of the label.
        loss: Cross-entropy in nats.
        picture: A small JPEG or PNG; None where no rank had it.
    """

    sample: int
    shard: str
    key: str | None
    label: int
    predicted: int
    confidence: float
    label_probability: float
    loss: float
    picture: bytes | None

    @property
    def file(self) -> str | None:
        """A name for the picture: of other pixels another."""
        if self.picture is None:
            return None
        suffix = ".png" if self.picture.startswith(b"\x89PNG") else ".jpg"
        return hashlib.sha256(self.picture).hexdigest()[:16] + suffix

    def as_json(self, folder: str) -> dict[str, Any]:
        """With the path of the picture, below ``folder``, in place of it."""
        names = ("sample", "shard", "key", "label", "predicted", "confidence", "label_probability", "loss")
        file = None if self.file is None else f"{folder}/{self.file}"
        return {"picture": file, **{name: getattr(self, name) for name in names}}


def described(
    found: Mapping[str, Examples], outputs: Outputs, index: ShardIndex, cache: ShardCache
) -> dict[str, list[Example]]:
    """Examples by kind, the most extreme first. A server that does not answer, or not soon, is asked for no more keys.

    Args:
        found: By kind.
        outputs: Of the same weights.
        index: Of the split.
        cache: How remote shards are read.
    """
    away, until = False, time.monotonic() + KEYS_S

    def key(sample: int) -> str | None:
        nonlocal away
        try:
            return None if away or time.monotonic() > until else reader.key_alone(sample)
        except DataError:
            return None
        except UnreachableError:
            away = True
            return None

    with closing(ShardReader(index, cache)) as reader:
        return {
            kind: [
                Example(
                    sample=sample,
                    shard=str(index.shards[index.shard_of(sample)]),
                    key=key(sample),
                    label=int(outputs.labels[sample]),
                    predicted=int(outputs.ranked[sample, 0]),
                    confidence=float(outputs.confidences[sample]),
                    label_probability=float(np.exp(-outputs.losses[sample])),
                    loss=float(outputs.losses[sample]),
                    picture=encoded(image) if there else None,
                )
                for sample, image, there in zip(examples.samples.tolist(), examples.images, examples.there, strict=True)
            ]
            for kind, examples in found.items()
        }


def encoded(image: NDArray[np.uint8]) -> bytes:
    """(C, h, w) uint8 to a PNG or JPEG, as it is: grey, RGB or RGBA."""
    channels, height, width = image.shape
    pixels = image[0] if channels == 1 else image.transpose(1, 2, 0)
    picture = PilImage.fromarray(np.ascontiguousarray(pixels))
    buffer = io.BytesIO()
    if max(height, width) <= TINY or channels not in (1, 3):
        picture.save(buffer, format="PNG", optimize=True)
    else:
        picture.save(buffer, format="JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def write_pictures(examples: list[Example], folder: Path) -> None:
    """Write those that are not there; others stay."""
    folder.mkdir(parents=True, exist_ok=True)
    for example in examples:
        if example.picture is not None and example.file is not None and not (folder / example.file).exists():
            write_atomically(folder / example.file, example.picture)


def remove_others(examples: list[Example], folder: Path) -> None:
    """Remove pictures of earlier evaluations."""
    wanted = {example.file for example in examples}
    for file in folder.iterdir():
        if file.name not in wanted and file.suffix in (".png", ".jpg"):
            file.unlink(missing_ok=True)
