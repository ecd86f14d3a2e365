"""JPEGs like ImageNet's (500x375, about 110 KB, 4:2:0), cut from photographs of scikit-image and scikit-learn."""

import io
from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from datamodules.making.shards import Image as ShardImage
from datamodules.making.shards import write_split

SIZE = (500, 375)
TARGET_BYTES = 110_000
QUALITIES = range(85, 101)
FILES = (
    "astronaut.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
)
"""Of scikit-image's, those with as much detail as it takes to fill 110 KB at the qualities (95 to 98) of ImageNet's."""


def photographs() -> list[Image.Image]:
    """The originals, all larger than SIZE."""
    folder = Path(skimage.__file__).parent / "data"
    found = [Image.open(folder / name).convert("RGB") for name in FILES]
    return [*found, Image.fromarray(load_sample_images().images[0])]


def jpegs(count: int, *, seed: int = 0) -> list[bytes]:
    """Different cuts, mirrored or not, each at the quality that brings it closest to TARGET_BYTES."""
    rng = np.random.default_rng(seed)
    originals = photographs()
    return [_jpeg(_cut(originals[i % len(originals)], rng)) for i in range(count)]


def write_shards(folder: Path, *, shards: int, samples: int, different: int) -> None:
    """Shards of ``samples`` samples, of which so many are ``different``, as the split ``train`` of ``imagenet1k``."""
    contents = jpegs(different)
    images = [
        ShardImage(f"n{i:08d}", "jpg", i % 1000, lambda data=contents[i % different]: data)
        for i in range(shards * samples)
    ]
    for split in ("train", "validation"):
        write_split(images, folder, name="imagenet1k", split=split, num_shards=shards, seed=0)


def _cut(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    width = min(image.width, image.height * SIZE[0] / SIZE[1]) * rng.uniform(0.85, 1)
    height = width * SIZE[1] / SIZE[0]
    left, top = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    cut = image.resize(SIZE, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    return ImageOps.mirror(cut) if rng.random() < 0.5 else cut


def _jpeg(image: Image.Image) -> bytes:
    tries = []
    for quality in QUALITIES:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
        tries.append(buffer.getvalue())
    return min(tries, key=lambda data: abs(len(data) - TARGET_BYTES))
