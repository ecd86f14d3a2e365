"""What there is to write: each image of a source with its key, label and place, a million of them in little memory."""

import hashlib
import os
import stat
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from configs.problems import DataError
from datamodules.indexing.scan import IMAGE_EXTENSIONS

Int64 = NDArray[np.int64]


class Place(NamedTuple):
    """Where an image's bytes lie: a part of a file, or all of it."""

    file: str
    offset: int
    size: int


class Strings:
    """Many strings end to end: as objects, the paths of ImageNet would take some hundred megabytes."""

    def __init__(self, items: Iterable[str] = ()) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])
        for item in items:
            self.append(item)

    def append(self, item: str) -> None:
        """Add one."""
        self._text += item.encode("utf-8", "surrogateescape")
        self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> str:
        if not 0 <= number < len(self):
            raise IndexError(number)
        return self._text[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogateescape")

    def digest(self) -> bytes:
        """SHA-256 of them all."""
        digest = hashlib.sha256(self._ends.tobytes())
        digest.update(self._text)
        return digest.digest()


@dataclass(frozen=True, eq=False)
class Places:
    """The place of each image.

    Attributes:
        files: One file for each image, or one that has all of them.
        offsets: (images,) int64.
        sizes: (images,) int64, bytes.
    """

    files: Strings
    offsets: Int64
    sizes: Int64

    def __getitem__(self, number: int) -> Place:
        file = self.files[number if len(self.files) > 1 else 0]
        return Place(file, int(self.offsets[number]), int(self.sizes[number]))


@dataclass(frozen=True, eq=False)
class Listing:
    """All images of a source, in an order that depends on the source alone.

    Attributes:
        keys: Unique, without a dot.
        labels: (images,) int64.
        classes: Names in the order of the labels, where the source has them.
        image_bytes: Bytes of all images together.
        source_digest: Changes whenever keys, labels or the files behind them do.
        places: Finds where the bytes are; may first copy them to where they can be read in any order.
    """

    keys: Strings
    labels: Int64
    classes: tuple[str, ...] | None
    image_bytes: int
    source_digest: str
    places: Callable[[], Places]

    def __len__(self) -> int:
        return len(self.keys)


def digest_of(*parts: bytes) -> str:
    """SHA-256 in hex of parts of fixed size or their own digests."""
    return hashlib.sha256(b"".join(parts)).hexdigest()


class UniqueKeys:
    """Makes keys of names. ``a/b_c.jpg``, ``a_b/c.jpg`` and ``a/b.c.png`` would share one: the later get a number."""

    def __init__(self) -> None:
        self.keys = Strings()
        self._next: dict[str, int] = {}

    def add(self, name: PurePath) -> None:
        """Append the key of a file, from its path without the suffix of its type."""
        named = name.with_suffix("") if name.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS else name
        parts = [part for part in named.parts if part not in ("..", named.anchor)]
        key = candidate = "_".join(parts).replace(".", "_")
        while candidate in self._next:
            candidate = f"{key}_{self._next[key]}"
            self._next[key] += 1
        self._next[candidate] = 1
        self.keys.append(candidate)


def list_image_folder(root: Path) -> Listing:
    """Images of a tree ``root/<class>/….jpg``; classes in sorted order. Hidden files are left out.

    Raises:
        DataError: If there is no class folder, a class has no image or a folder twice, or an image is no file.
    """
    classes = sorted(path.name for path in root.iterdir() if _shown(path.name) and path.is_dir())
    if not classes:
        raise DataError(f"{root}: no folder per class in it")
    keys, files = UniqueKeys(), Strings()
    labels, sizes, times = array("q"), array("q"), array("q")
    for label, name in enumerate(classes):
        names = sorted(_images_below(os.path.join(root, name)))
        if not names:
            raise DataError(f"{root / name}: no image ({', '.join(IMAGE_EXTENSIONS)}) in it")
        for file in names:
            status = file_status(file)
            keys.add(PurePath(file[len(os.path.join(root, "")) :]))
            files.append(file)
            labels.append(label)
            sizes.append(status.st_size)
            times.append(status.st_mtime_ns)
    places = Places(files, np.zeros(len(sizes), dtype=np.int64), np.array(sizes, dtype=np.int64))
    digest = digest_of(keys.keys.digest(), labels.tobytes(), sizes.tobytes(), times.tobytes())
    return Listing(keys.keys, np.array(labels), tuple(classes), sum(sizes), digest, lambda: places)


def file_status(file: str) -> os.stat_result:
    """Size and time of a file that is to be read.

    Raises:
        DataError: If it is none: reading a pipe would wait for ever.
    """
    try:
        status = os.stat(file)
    except ValueError as error:
        raise DataError(f"{file!r} is no name of a file ({error})") from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{file} is no file")
    return status


def _images_below(folder: str) -> list[str]:
    found = []
    walked: dict[str, str] = {}
    for parent, folders, files in os.walk(folder, followlinks=True, onerror=_fail):
        place = os.path.realpath(parent)
        if place in walked:
            raise DataError(f"{parent} is a link to {walked[place]}: its images would come twice")
        walked[place] = parent
        folders[:] = filter(_shown, folders)
        found += [os.path.join(parent, file) for file in files if _shown(file) and _is_image(file)]
    return found


def _fail(error: OSError) -> None:
    """A folder that cannot be read would be left out in silence."""
    raise error


def _shown(name: str) -> bool:
    return not name.startswith(".")


def _is_image(name: str) -> bool:
    return os.path.splitext(name)[1].lower().lstrip(".") in IMAGE_EXTENSIONS
