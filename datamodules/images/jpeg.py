"""Decoding the part of a JPEG that a crop shows: rows below it are not read, the rest beside it is not transformed.

libjpeg-turbo can do so, but of its bindings on PyPI only NVIDIA's nvImageCodec lets it. Its pixels are those of a full
decode to the bit, so where it is not to be had (it is built for Linux alone), nothing but time is lost.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Box = tuple[int, int, int, int]
"""Top, left, height and width of a part of an image, in pixels."""
Pixels = NDArray[np.uint8]
"""(height, width, channels) uint8."""


def decode_part(jpeg: bytes, box: Box) -> Pixels | None:
    """Decode a part of a JPEG to RGB.

    Returns:
        (rows, columns, 3), or None where it cannot be done: let another decoder find out why.
    """
    # A decoder has threads, which a forked process would miss: each process has its own.
    tools = _tools(os.getpid())
    if tools is None:
        return None
    codec, decoder = tools
    top, left, rows, columns = box
    try:
        whole = codec.CodeStream(jpeg)
        image = decoder.decode(whole.get_sub_code_stream(region=codec.Region(top, left, top + rows, left + columns)))
    except RuntimeError:
        return None
    if image is None:
        return None
    pixels = np.asarray(image)
    return pixels if pixels.shape == (rows, columns, 3) and pixels.dtype == np.uint8 else None


@cache
def _tools(_process_id: int) -> tuple[Any, Any] | None:
    os.environ.setdefault("PYNVIMGCODEC_VERBOSITY", "0")  # else it prints what it makes of each damaged image
    with _silence():
        try:
            from nvidia import nvimgcodec as codec

            backends = [codec.Backend(codec.CPU_ONLY)]
            device = codec.NVIMGCODEC_DEVICE_CPU_ONLY
            return codec, codec.Decoder(device_id=device, max_num_cpu_threads=1, backends=backends)
        except (ImportError, AttributeError, RuntimeError):
            return None


@contextmanager
def _silence() -> Iterator[None]:
    """Standard error to nowhere: while it loads, it tells of each CUDA library that is not there, and is not needed."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
