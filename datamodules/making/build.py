"""Building a split: shards written by several processes, and by as many runs as it takes.

A run that was killed is taken up where it stopped: ``.<name>-<split>-build.jsonl`` says what is being built, and names
each finished shard with its size. The bytes depend on the source and the settings alone.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from configs.files import write_atomically
from configs.problems import DataError
from datamodules.bars import Bar, no_bar
from datamodules.indexing.tar import BLOCK
from datamodules.making.listing import Listing, Places
from datamodules.making.record import Written, differing, read_record, record_lines
from datamodules.making.shard import Settings, ShardTask, encoded, write_shard
from datamodules.making.shards import lock_if_possible, plan_shards, shards_of, update_info, write_classes
from datamodules.processes import in_processes
from datamodules.streaming.order import permutation

RECORD_VERSION = 1
"""Changes whenever the same source and settings would give other bytes."""
SAMPLED_FOR_SIZE = 256
"""Images encoded to learn, about, how large the shards will be."""


def build_split(
    listing: Listing,
    out_dir: Path,
    settings: Settings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    bar: Bar = no_bar,
) -> list[Written]:
    """Write the shards that are not there yet, then ``_info.json``; ``classes.json`` where the source has names.

    Args:
        listing: The images.
        out_dir: Made where it is missing. Other splits in it stay.
        settings: What to write.
        workers: Processes. They change no byte.
        overwrite: Remove shards of another build under the same names, which are an error otherwise.
        bar: For the shards, and for a copy of the images where one is needed.

    Raises:
        DataError: If an image cannot be read, there are fewer images than shards, or other shards are in the way.
    """
    if settings.num_shards is not None:
        _plan(listing, out_dir, settings, settings.num_shards)  # before anything is written
    out_dir.mkdir(parents=True, exist_ok=True)
    record = out_dir / f".{settings.name}-{settings.split}-build.jsonl"
    with ExitStack() as stack:
        if not lock_if_possible(stack, record.with_suffix(".lock"), wait=False):
            raise DataError(f"{out_dir}: {settings.name}-{settings.split} is being built by another process")
        return _build(listing, out_dir, settings, record, workers=workers, overwrite=overwrite, bar=bar)


def _build(
    listing: Listing, out_dir: Path, settings: Settings, record: Path, *, workers: int, overwrite: bool, bar: Bar
) -> list[Written]:
    source = {
        "version": RECORD_VERSION,
        "source": listing.source_digest,
        "pillow": PIL.__version__,  # it makes the bytes of an image that is encoded
        **asdict(settings),
    }
    header, finished = read_record(record)
    num_shards = header["shards"] if header is not None and not differing(header, source) else None
    if num_shards is None:
        _check_way(out_dir, settings, header, source, overwrite=overwrite)
        finished = {}
        update_info(out_dir, settings.split, None)
    if listing.classes is not None:
        write_classes(out_dir, listing.classes)
    if num_shards is None:
        for path in shards_of(out_dir, settings.name, settings.split):
            path.unlink()
        num_shards = settings.num_shards or _num_shards(listing, settings)
    shards = _plan(listing, out_dir, settings, num_shards)
    kept = {name: shard for name, shard in finished.items() if _size(out_dir / name) == shard.size}
    write_atomically(
        record, record_lines(source | {"shards": num_shards}, *(shard._asdict() for shard in kept.values()))
    )
    _remove_leftovers(out_dir, settings, "tmp")
    missing = [(path, numbers) for path, numbers in shards if path.name not in kept]
    if missing:
        tasks = _tasks(listing, listing.places(), missing, settings)
        try:
            with (
                record.open("a", encoding="utf-8") as stream,
                bar("writing shards", len(shards)) as advance,
                closing(in_processes(write_shard, tasks, workers=min(workers, len(missing)))) as finishing,
            ):
                advance(len(kept))
                for shard in finishing:
                    stream.write(record_lines(shard._asdict()))
                    stream.flush()
                    kept[shard.shard] = shard
                    advance(1)
        finally:
            _remove_leftovers(out_dir, settings, "tmp")
    written = [kept[path.name] for path, _ in shards]
    update_info(out_dir, settings.split, {shard.shard: shard.samples for shard in written})
    _remove_leftovers(out_dir, settings, "images")
    return written


def _plan(listing: Listing, out_dir: Path, settings: Settings, num_shards: int) -> list[tuple[Path, NDArray[np.int64]]]:
    return plan_shards(
        len(listing), out_dir, name=settings.name, split=settings.split, num_shards=num_shards, seed=settings.seed
    )


def _num_shards(listing: Listing, settings: Settings) -> int:
    assert settings.shard_size_bytes is not None
    image_bytes = listing.image_bytes
    if settings.short_side is not None:
        image_bytes = round(_mean_encoded_bytes(listing, settings) * len(listing))
    # per sample: two headers, the label's block, and half a block of padding
    total = image_bytes + len(listing) * (3 * BLOCK + BLOCK // 2)
    return min(len(listing), max(1, round(total / settings.shard_size_bytes)))


def _mean_encoded_bytes(listing: Listing, settings: Settings) -> float:
    places = listing.places()
    sizes = []
    for number in permutation(len(listing), settings.seed, 0)[:SAMPLED_FOR_SIZE]:
        try:
            sizes.append(len(encoded(places[int(number)], settings)[1]))
        except DataError:
            continue  # reported where its shard is written
    return float(np.mean(sizes)) if sizes else listing.image_bytes / len(listing)


def _tasks(
    listing: Listing, places: Places, shards: Sequence[tuple[Path, NDArray[np.int64]]], settings: Settings
) -> Iterator[ShardTask]:
    for path, array in shards:
        numbers = array.tolist()
        yield ShardTask(
            path,
            [listing.keys[i] for i in numbers],
            [int(listing.labels[i]) for i in numbers],
            [places[i] for i in numbers],
            settings,
        )


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _check_way(
    out_dir: Path, settings: Settings, header: dict[str, Any] | None, source: dict[str, Any], *, overwrite: bool
) -> None:
    there = shards_of(out_dir, settings.name, settings.split)
    if there and not overwrite:
        changes = [
            f"{key} was {header.get(key)}, is {source[key]}" for key in differing(header or {}, source) if header
        ]
        raise DataError(
            f"{out_dir} has {there[0].name} of another build ({'; '.join(changes) or 'no record of it'}): "
            "remove its shards, choose another --name, or give --overwrite"
        )


def copy_prefix(out_dir: Path, name: str, split: str) -> Path:
    """How the names of a split's temporary copies begin; they are removed when all shards are written."""
    return out_dir / f".{name}-{split}"


def _remove_leftovers(out_dir: Path, settings: Settings, suffix: str) -> None:
    prefix = re.escape(copy_prefix(out_dir, settings.name, settings.split).name)
    pattern = re.compile(rf"{prefix}-[0-9a-f]+\.(tar|images)(\.[0-9a-f]{{32}}\.tmp)?")
    for path in out_dir.glob(f".*.{suffix}"):
        if pattern.fullmatch(path.name):
            path.unlink()
