"""Small texts that tests share: four classes of words."""

import random
from functools import partial

from datamodules.making.shards import Image

WORDS = ("if for while return", "the of and that", "0 1 2 3 4", "( ) [ ] { }")


def passage(number: int, length: int = 60) -> bytes:
    """Words of its class (number mod 4), and a number of its own in front."""
    words = random.Random(number).choices(WORDS[number % 4].split(), k=length)
    return " ".join([f"#{number}", *words]).encode()


def text_samples(count: int, first: int = 0) -> list[Image]:
    return [Image(f"text_{i:05d}", "txt", i % 4, partial(passage, i)) for i in range(first, first + count)]
