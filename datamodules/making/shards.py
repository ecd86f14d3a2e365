"""Writing WebDataset shards: deterministic bytes, whole files or none."""

import io
import json
import os
import re
import tarfile
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.files import write_atomically
from configs.problems import DataError
from datamodules.storage.locks import NO_LOCKS, file_lock
from datamodules.streaming.order import permutation


class Image(NamedTuple):
    """An image to be written: its key (unique, without a dot), its extension, its label, and a way to get its bytes."""

    key: str
    extension: str
    label: int
    read: Callable[[], bytes]


def write_split(
    images: Sequence[Image],
    out_dir: Path,
    *,
    name: str,
    split: str,
    num_shards: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Path]:
    """Write ``<name>-<split>-00000.tar`` and so on, shuffled over all shards by ``seed``, as equal as can be.

    The bytes depend on images and arguments alone: no time, user or host goes into them. A shard appears under its name
    when it is whole.

    Raises:
        DataError: If there are fewer images than shards, an image cannot be read, or the folder has shards of that name
            that would stay beside the new ones.
    """
    shards = plan_shards(len(images), out_dir, name=name, split=split, num_shards=num_shards, seed=seed)
    _check_keys(images)
    left = sorted({path.name for path in shards_of(out_dir, name, split)} - {path.name for path, _ in shards})
    if left:
        raise DataError(
            f"{out_dir} has {left[0]} of another build, beside the {num_shards} shards asked for: remove it"
        )
    out_dir.mkdir(parents=True, exist_ok=True)
    for path, numbers in shards:
        write_tar(path, (member for i in numbers for member in _members(images[int(i)])))
        if progress is not None:
            progress(1)
    update_info(out_dir, split, {path.name: len(numbers) for path, numbers in shards})
    return [path for path, _ in shards]


def plan_shards(
    count: int, out_dir: Path, *, name: str, split: str, num_shards: int, seed: int
) -> list[tuple[Path, NDArray[np.int64]]]:
    """Each shard's path and the numbers of the images in it: shuffled over all shards, as equal as can be.

    Raises:
        DataError: If there are fewer images than shards.
    """
    if not 0 < num_shards <= count:
        raise DataError(f"{split}: {count} images cannot fill {num_shards} shards")
    digits = max(5, len(str(num_shards - 1)))
    shuffled = permutation(count, seed, count)
    bounds = [i * count // num_shards for i in range(num_shards + 1)]
    return [
        (out_dir / f"{name}-{split}-{shard:0{digits}d}.tar", shuffled[first:last])
        for shard, (first, last) in enumerate(pairwise(bounds))
    ]


def shards_of(out_dir: Path, name: str, split: str) -> list[Path]:
    """Files in a folder that have the names of a split's shards."""
    pattern = re.compile(re.escape(f"{name}-{split}-") + r"\d+\.tar")
    return sorted(path for path in out_dir.glob("*.tar") if pattern.fullmatch(path.name))


def write_classes(out_dir: Path, names: Sequence[str]) -> None:
    """``classes.json``: class names, in the order of the labels. All splits of a folder share it.

    Raises:
        DataError: If the folder has shards of other classes, or a name is no Unicode.
    """
    path = out_dir / "classes.json"
    text = json.dumps(list(names), indent=0, ensure_ascii=False) + "\n"
    unreadable = next((name for name in names if name.encode("utf-8", "replace").decode() != name), None)
    if unreadable is not None:
        raise DataError(f"class {unreadable!r} has a name that is not UTF-8: rename it")
    if read_info(out_dir)["splits"] and path.exists() and path.read_bytes() != text.encode():
        raise DataError(f"{path} has other classes than these {len(names)}, and the shards beside it go by its labels")
    out_dir.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text)


def read_classes(folder: Path) -> list[str] | None:
    """The names that ``classes.json`` has, where there is one.

    Raises:
        DataError: If it is not a list of names.
    """
    file = folder / "classes.json"
    if not file.is_file():
        return None
    return parse_classes(file.read_bytes(), source=str(file))


def parse_classes(contents: bytes, *, source: str) -> list[str]:
    """The names in a ``classes.json``.

    Raises:
        DataError: If it is not a list of names.
    """
    try:
        names = json.loads(contents)
    except ValueError as error:
        raise DataError(f"{source}: not JSON ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{source}: not a list of class names")
    return names


def split_of(shard: Path) -> str:
    """What shards of one split share: their name without its number."""
    return re.sub(r"[-_.]?\d+$", "", shard.stem) or shard.stem


def _check_keys(images: Sequence[Image]) -> None:
    counts = Counter(image.key for image in images)
    for key, count in counts.items():
        if count > 1 or "." in key.rpartition("/")[2]:
            raise DataError(f"{count} images have the key {key!r}: a key is unique, and has no dot in it")


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write an archive of files, in that order, which appears under its name when it is whole.

    Members know no time, user or host.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("wb") as file:
            # pax is ustar, but for names that ustar has no room for
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8") as archive:
                for name, contents in members:
                    member = tarfile.TarInfo(name)
                    member.size = len(contents)
                    archive.addfile(member, io.BytesIO(contents))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def sample_members(key: str, extension: str, contents: bytes, label: int) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files that make a sample."""
    yield f"{key}.{extension}", contents
    yield f"{key}.cls", str(label).encode()


def _members(image: Image) -> Iterator[tuple[str, bytes]]:
    return sample_members(image.key, image.extension, _contents(image), image.label)


def _contents(image: Image) -> bytes:
    try:
        return image.read()
    except OSError as error:
        raise DataError(f"image {image.key}: {error}") from error


def update_info(out_dir: Path, split: str, shard_samples: Mapping[str, int] | None) -> None:
    """``_info.json`` as timm's wds reader knows it: puts a split's shards in, or takes the split out with None."""
    path = out_dir / "_info.json"
    with ExitStack() as stack:
        lock_if_possible(stack, out_dir / "._info.lock", wait=True)  # two splits may be built at once
        info = read_info(out_dir)
        splits = info["splits"]
        if shard_samples is None:
            if splits.pop(split, None) is None:
                return
        else:
            splits[split] = {
                "name": split,
                "filenames": list(shard_samples),
                "shard_lengths": list(shard_samples.values()),
                "num_samples": sum(shard_samples.values()),
            }
        write_atomically(path, json.dumps(info, indent=2) + "\n")


def is_built(out_dir: Path) -> bool:
    """Whether all shards are there of a folder whose training split is written last.

    Raises:
        DataError: If the folder's ``_info.json`` is damaged.
    """
    splits = read_info(out_dir)["splits"]
    return "train" in splits and all(
        (out_dir / name).is_file() for split in splits.values() for name in split["filenames"]
    )


def lock_if_possible(stack: ExitStack, path: Path, *, wait: bool) -> bool:
    """Hold a lock until the stack is left; whether nobody else has it. Some clusters' file systems have no locks."""
    try:
        return stack.enter_context(file_lock(path, wait=wait))
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        return True


def read_info(out_dir: Path) -> dict[str, Any]:
    """What ``_info.json`` has: ``splits`` by name, and whatever others have put beside them.

    Raises:
        DataError: If it is of another form.
    """
    path = out_dir / "_info.json"
    try:
        info: Any = json.loads(path.read_bytes()) if path.is_file() else {}
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not JSON ({error}): remove it") from None
    if not isinstance(info, dict) or not isinstance(info.setdefault("splits", {}), dict):
        raise DataError(f"{path}: not an _info.json of timm's: remove it, or choose another folder")
    return info
