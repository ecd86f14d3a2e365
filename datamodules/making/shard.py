"""Writing one shard of a build: what a worker does."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from configs.problems import DataError
from datamodules.images.encode import DEFAULT_QUALITY, encode
from datamodules.making.listing import Place
from datamodules.making.record import Written
from datamodules.making.shards import sample_members, write_tar


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is written, beside the images themselves.

    Attributes:
        name: First part of the shards' names.
        split: Second part of them.
        seed: Of the shuffle over all shards.
        num_shards: Or:
        shard_size_bytes: What a shard is to have, about. Exactly one of the two is set.
        short_side: Pixels; larger images are made smaller. None leaves every size.
        quality: Of the JPEG that these become.
        skip_bad: Leave out images that cannot be read, instead of ending there.
    """

    name: str
    split: str
    seed: int = 0
    num_shards: int | None = None
    shard_size_bytes: int | None = None
    short_side: int | None = None
    quality: int = DEFAULT_QUALITY
    skip_bad: bool = False


@dataclass(frozen=True)
class ShardTask:
    """Images of a shard, in their order."""

    path: Path
    keys: list[str]
    labels: list[int]
    places: list[Place]
    settings: Settings


def write_shard(task: ShardTask) -> Written:
    """Write one shard.

    Raises:
        DataError: If an image cannot be read, and such are not to be left out, or none can.
    """
    left_out: list[tuple[str, str]] = []

    def members() -> Iterator[tuple[str, bytes]]:
        for key, label, place in zip(task.keys, task.labels, task.places, strict=True):
            try:
                extension, contents = encoded(place, task.settings)
            except OSError as error:
                raise DataError(f"image {key} ({place.file}): {error}") from error
            except DataError as error:
                if not task.settings.skip_bad:
                    raise DataError(
                        f"image {key} ({place.file}): {error}; --skip-bad leaves such images out"
                    ) from error
                left_out.append((key, str(error)))
            else:
                yield from sample_members(key, extension, contents, label)
        if len(left_out) == len(task.keys):
            raise DataError(f"{task.path.name}: none of its images can be read, the first being {left_out[0]}")

    write_tar(task.path, members())
    return Written(task.path.name, task.path.stat().st_size, len(task.keys) - len(left_out), left_out)


def encoded(place: Place, settings: Settings) -> tuple[str, bytes]:
    """Extension and bytes of an image as the shard has it.

    Raises:
        DataError: If it is no readable image.
    """
    return encode(_read(place), short_side=settings.short_side, quality=settings.quality)


def _read(place: Place) -> bytes:
    with open(place.file, "rb", buffering=0) as file:
        contents = os.pread(file.fileno(), place.size, place.offset)
    if len(contents) < place.size:
        raise OSError(f"{place.file} has become shorter: it was changed while it was read")
    return contents
