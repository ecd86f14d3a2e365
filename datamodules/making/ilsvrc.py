"""ILSVRC2012 as it is downloaded: a tar of one tar per class, a tar of validation images, and the development kit.

Nothing is unpacked: the tars are indexed by their headers, and images are read where they lie. Labels are positions
among the sorted WordNet ids of the 1,000 classes, as everywhere but in the development kit: its own ids run otherwise.
"""

import io
import os
import re
import tarfile
from array import array
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, cast

import numpy as np

from configs.problems import DataError
from datamodules.bars import Bar, no_bar
from datamodules.indexing import tar
from datamodules.making.listing import Listing, Places, Strings, UniqueKeys, digest_of

META, GROUND_TRUTH = "data/meta.mat", "data/ILSVRC2012_validation_ground_truth.txt"
INDEXING_THREADS = 8
"""They wait for the disk, not for each other."""
_CLASS_TAR = re.compile(r"(n\d{8})\.tar")
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_(\d{8})\.JPEG", re.IGNORECASE)


@dataclass(frozen=True)
class Devkit:
    """What the development kit says.

    Attributes:
        wnids: Sorted WordNet ids of the classes.
        validation_labels: Label of each validation image, in the order of their numbers.
    """

    wnids: tuple[str, ...]
    validation_labels: tuple[int, ...]


def list_ilsvrc(archive: Path, devkit: Path | None, *, bar: Bar = no_bar) -> tuple[Listing, str]:
    """Images of the training or the validation tar, and which of the two it is: ``train`` or ``validation``.

    Raises:
        DataError: If it is neither, or damaged, or the development kit is missing or does not fit.
    """
    with archive.open("rb") as file:
        stat = os.fstat(file.fileno())
        outer = list(tar.members(file, length=stat.st_size, source=str(archive)))
    names = [PurePosixPath(member.name).name for member in outer]
    kit = read_devkit(devkit) if devkit is not None else None
    time = str(stat.st_mtime_ns).encode()
    if outer and all(map(_CLASS_TAR.fullmatch, names)):
        wnids = _check_classes(archive, names, kit)
        return _listing(archive, _training(archive, sorted(zip(names, outer, strict=True)), bar), wnids, time), "train"
    if outer and all(map(_VALIDATION_IMAGE.fullmatch, names)):
        if kit is None:
            raise DataError(f"{archive} has validation images: their labels are in the development kit (--devkit)")
        return _listing(archive, _validation(archive, outer, names, kit), kit.wnids, time), "validation"
    raise DataError(
        f"{archive} is neither ILSVRC2012_img_train.tar (n01440764.tar, …) nor ILSVRC2012_img_val.tar "
        f"(ILSVRC2012_val_00000001.JPEG, …): it begins with {names[0] if names else 'nothing'}"
    )


def _listing(
    archive: Path, images: Iterable[tuple[tar.Member, int]], classes: tuple[str, ...], version: bytes
) -> Listing:
    keys = UniqueKeys()
    labels, offsets, sizes = array("q"), array("q"), array("q")
    for member, label in images:
        keys.add(PurePath(PurePosixPath(member.name).name))
        labels.append(label)
        offsets.append(member.data_offset)
        sizes.append(member.size)
    places = Places(Strings([str(archive)]), np.array(offsets), np.array(sizes))
    digest = digest_of(keys.keys.digest(), labels.tobytes(), offsets.tobytes(), sizes.tobytes(), version)
    return Listing(keys.keys, np.array(labels), classes, sum(sizes), digest, lambda: places)


def _check_classes(archive: Path, names: list[str], kit: Devkit | None) -> tuple[str, ...]:
    wnids = tuple(sorted(PurePath(name).stem for name in names))
    if len(set(wnids)) < len(wnids):
        raise DataError(f"{archive}: a class comes twice")
    if kit is not None and wnids != kit.wnids:
        missing, unknown = sorted(set(kit.wnids) - set(wnids)), sorted(set(wnids) - set(kit.wnids))
        raise DataError(
            f"{archive} has {len(wnids)} classes, the development kit {len(kit.wnids)}: "
            f"missing {', '.join(missing[:3]) or 'none'}, unknown {', '.join(unknown[:3]) or 'none'}"
        )
    return wnids


def _training(archive: Path, tars: list[tuple[str, tar.Member]], bar: Bar) -> Iterator[tuple[tar.Member, int]]:
    """Images in the order of classes and names, each with its label."""
    with bar("indexing tars", len(tars)) as advance, ThreadPoolExecutor(INDEXING_THREADS) as pool:
        for label, found in enumerate(pool.map(lambda entry: _inner(archive, *entry), tars)):
            for member in found:
                yield member, label
            advance(1)


def _inner(archive: Path, name: str, member: tar.Member) -> list[tar.Member]:
    """Members of a tar in a tar, by their offsets in the outer one, in the order of their names."""
    with archive.open("rb", buffering=0) as file:
        inner = cast(BinaryIO, io.BufferedReader(_Window(file.fileno(), member), tar.BLOCK))
        found = [
            tar.Member(each.name, member.data_offset + each.offset, member.data_offset + each.data_offset, each.size)
            for each in tar.members(inner, length=member.size, source=f"{archive}: {name}")
        ]
    if not found:
        raise DataError(f"{archive}: {name}: no image in it")
    return sorted(found)


class _Window(io.RawIOBase):
    """A part of a file, as a file."""

    def __init__(self, descriptor: int, member: tar.Member) -> None:
        self._descriptor = descriptor
        self._begin = member.data_offset
        self._size = member.size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = start + offset
        return self._position

    def readinto(self, buffer: "memoryview[int]") -> int:  # type: ignore[override]
        count = max(0, min(len(buffer), self._size - self._position))
        found = os.pread(self._descriptor, count, self._begin + self._position)
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


def _validation(
    archive: Path, members: list[tar.Member], names: list[str], kit: Devkit
) -> list[tuple[tar.Member, int]]:
    if len(members) != len(kit.validation_labels):
        raise DataError(
            f"{archive} has {len(members):,} images, the development kit labels {len(kit.validation_labels):,}"
        )
    by_number = {
        int(name.partition(".")[0].rpartition("_")[2]): each for name, each in zip(names, members, strict=True)
    }
    if set(by_number) != set(range(1, len(members) + 1)):
        raise DataError(f"{archive}: the images are not numbered from 1 to {len(members)}, each once")
    return [(by_number[number], label) for number, label in enumerate(kit.validation_labels, start=1)]


def read_devkit(source: Path) -> Devkit:
    """Read the development kit, as ``ILSVRC2012_devkit_t12.tar.gz`` or the folder in it.

    Raises:
        DataError: If a part of it is missing or damaged, or SciPy is not installed.
    """
    try:
        from scipy.io import loadmat
        from scipy.io.matlab import MatReadError
    except ImportError:
        raise DataError("the development kit's meta.mat is read by SciPy: pip install 'effnet[ilsvrc]'") from None
    meta, ground_truth = _devkit_files(source)
    try:
        synsets = np.atleast_1d(loadmat(io.BytesIO(meta), squeeze_me=True)["synsets"])
        leaves = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets if int(row["num_children"]) == 0}
    except (KeyError, ValueError, TypeError, IndexError, OSError, NotImplementedError, MatReadError) as error:
        raise DataError(f"{source}: {META} is not that of ILSVRC2012 ({error})") from None
    wnids = tuple(sorted(leaves.values()))
    label_of = {identifier: wnids.index(wnid) for identifier, wnid in leaves.items()}
    try:
        labels = tuple(label_of[int(line)] for line in ground_truth.split())
    except (KeyError, ValueError) as error:
        raise DataError(f"{source}: {GROUND_TRUTH} has an id that is no class of {META}: {error}") from None
    return Devkit(wnids, labels)


def _devkit_files(source: Path) -> tuple[bytes, bytes]:
    found = {}
    if source.is_dir():
        for name in (META, GROUND_TRUTH):
            file = next((path for path in (source / name, *sorted(source.glob(f"*/{name}"))) if path.is_file()), None)
            if file is not None:
                found[name] = file.read_bytes()
    else:
        try:
            with tarfile.open(source) as archive:
                for member in archive:
                    name = "/".join(PurePosixPath(member.name).parts[-2:])
                    contents = archive.extractfile(member) if name in (META, GROUND_TRUTH) else None
                    if contents is not None:
                        found[name] = contents.read()
        except (tarfile.TarError, EOFError) as error:
            raise DataError(f"{source}: not the development kit ({error})") from None
    missing = [name for name in (META, GROUND_TRUTH) if name not in found]
    if missing:
        raise DataError(f"{source}: no {' and no '.join(missing)} in it")
    return found[META], found[GROUND_TRUTH]
