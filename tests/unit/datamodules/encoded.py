"""Image files for tests: noise, and real photographs."""

import io
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from skimage import data


def encoded(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=file_format, **options)
    return buffer.getvalue()


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@cache
def photograph(name: str = "astronaut", width: int = 500, height: int = 375) -> Image.Image:
    """One of scikit-image's, at a size like ImageNet's."""
    return Image.fromarray(getattr(data, name)()).convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
