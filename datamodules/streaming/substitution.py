"""What takes the place of a training sample whose image cannot be read: the next of its shard that can.

Which one that is depends on the shards alone, not on worker, rank or step, so the run stays the same on any machine.
"""

import os
from itertools import islice

from configs.problems import DataError
from datamodules.images.decoding import BadSampleError
from datamodules.streaming.decode import Decode, Decoded
from datamodules.streaming.shard_reader import RawSample
from datamodules.streaming.source import ShardSource

MAX_TRIES = 16
"""Samples in a row that may be bad before the shard is given up."""


class Substituting:
    """Decodes as ``decode`` does, but replaces what it finds bad, and says so on standard error.

    Attributes:
        decode: What decodes a sample.
        source: Where the samples come from.
    """

    def __init__(self, decode: Decode, source: ShardSource) -> None:
        self.decode = decode
        self.source = source

    def __call__(self, sample: RawSample) -> Decoded:
        """Decode a sample, or the next good one.

        Raises:
            DataError: If so many in a row are bad that the shard must be damaged, or something else is wrong.
        """
        try:
            return self.decode(sample)
        except BadSampleError as error:
            first = error
        belonging = {name: sample[name] for name in ("__epoch__", "__repeat__", "__stage__", "__weight__")}
        for other in islice(self.source.neighbours(sample["__index__"]), MAX_TRIES):
            try:
                image, label, number, weight, _ = self.decode(other | belonging)
            except BadSampleError:
                continue
            say(f"{first}; sample {other['__key__']} takes its place")
            return image, label, number, weight, True
        raise DataError(f"{first}, nor is any of up to {MAX_TRIES} samples after it")


def say(message: str) -> None:
    """Write a warning to standard error."""
    # A worker is a fork: its copies of the loggers may be locked for ever by threads that it does not have.
    os.write(2, f"warning: {message}\n".encode("utf-8", "replace"))
