"""Sources of images, small but of the real formats: folders, the files of ILSVRC2012, CSV and Parquet."""

import gzip
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import webdataset as wds
from PIL import Image as PilImage
from scipy.io import savemat

from datamodules.__main__ import main
from tests.conftest import picture
from tests.unit.datamodules.archives import write_tar

WNIDS = ("n03000000", "n01000000", "n02000000")
"""In the order of the development kit's ids, which is not the sorted one."""
GROUND_TRUTH = (3, 1, 1, 2, 3, 2, 1)
"""The development kit's ids of the validation images."""


def jpeg(number: int, size: tuple[int, int] = (40, 30), mode: str = "RGB", **options: Any) -> bytes:
    """A JPEG with smooth colours that depend on its number."""
    rows, columns = np.mgrid[0 : size[1], 0 : size[0]]
    waves = [np.sin(rows / 7 + number), np.cos(columns / 9 - number), np.sin((rows + columns) / 11)]
    pixels = np.stack(waves, axis=-1) * 100 + 128
    buffer = io.BytesIO()
    image = PilImage.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)
    image.save(buffer, **{"format": "JPEG", "quality": 90} | options)
    return buffer.getvalue()


def image_folder(root: Path, count: int = 12, classes: int = 3) -> Path:
    for i in range(count):
        path = root / f"class{i % classes}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    return root


def train_tar(path: Path, per_class: int = 4) -> tuple[Path, dict[str, tuple[bytes, int]]]:
    """A tar of one tar per class, and for each key the image and its label. One image is a PNG, one in CMYK."""
    inner, expected = [], {}
    for label, wnid in enumerate(sorted(WNIDS)):
        images = []
        for i in range(per_class):
            contents = jpeg(100 * label + i, mode="CMYK" if (label, i) == (2, 0) else "RGB")
            if (label, i) == (1, 1):
                contents = picture(7)
            images.append((f"{wnid}_{i}.JPEG", contents))
            expected[f"{wnid}_{i}"] = (contents, label)
        inner.append((f"{wnid}.tar", tar_with_times(images)))
    return write_tar(path, inner[::-1]), expected  # not in the order of the labels


def tar_with_times(members: list[tuple[str, bytes]]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, contents in members:
            member = tarfile.TarInfo(name)
            member.size, member.mtime, member.uname = len(contents), 1_340_000_000, "imagenet"
            archive.addfile(member, io.BytesIO(contents))
    return buffer.getvalue()


def validation_tar(path: Path) -> tuple[Path, dict[str, tuple[bytes, int]]]:
    images = [(f"ILSVRC2012_val_{i:08d}.JPEG", jpeg(i)) for i in range(1, len(GROUND_TRUTH) + 1)]
    labels = [sorted(WNIDS).index(WNIDS[identifier - 1]) for identifier in GROUND_TRUTH]
    expected = {Path(name).stem: (contents, label) for (name, contents), label in zip(images, labels, strict=True)}
    return write_tar(path, images), expected


def devkit(folder: Path) -> Path:
    """The folder ILSVRC2012_devkit_t12, its meta.mat written by SciPy: leaves first, then what is above them."""
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    fields += [("children", "O"), ("wordnet_height", "O"), ("num_train_images", "O")]
    rows = [(i + 1, wnid, f"word{i}, other", "a thing", 0, 0, 0, 4) for i, wnid in enumerate(WNIDS)]
    rows.append((len(WNIDS) + 1, "n00000001", "thing", "all things", 2, np.array([1, 2]), 1, 0))
    savemat(data / "meta.mat", {"synsets": np.array(rows, dtype=fields).reshape(-1, 1)}, do_compression=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(f"{i}\n" for i in GROUND_TRUTH))
    return data.parent


def devkit_archive(folder: Path) -> Path:
    path = folder / "ILSVRC2012_devkit_t12.tar.gz"
    with gzip.open(path, "wb") as stream, tarfile.open(fileobj=stream, mode="w") as archive:
        archive.add(devkit(folder / "kit"), arcname="ILSVRC2012_devkit_t12")
    return path


def samples_in(folder: Path, pattern: str = "*.tar") -> dict[str, tuple[str, bytes, int]]:
    """Extension, image and label by key, as webdataset reads them; each key comes once."""
    paths = [str(path) for path in sorted(folder.glob(pattern))]
    found: dict[str, tuple[str, bytes, int]] = {}
    for sample in wds.WebDataset(paths, shardshuffle=False, empty_check=False):
        [extension] = {"jpg", "png", "webp"} & set(sample)
        assert sample["__key__"] not in found
        found[sample["__key__"]] = (extension, sample[extension], int(sample["cls"]))
    return found


def hashes(folder: Path, pattern: str = "*.tar") -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob(pattern))}


def shards_command(*arguments: object, expected: int = 0, **environment: str) -> str:
    """Output of `effnet shards …`, as its users start it."""
    done = subprocess.run(
        [sys.executable, "-m", "datamodules", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        env={**os.environ, **environment},
    )
    assert done.returncode == expected, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def shards_main(*arguments: object, expected: int = 0) -> str:
    """Output of the same command within this process, which takes a tenth of the time."""
    output = io.StringIO()
    with (
        mock.patch.object(sys, "argv", ["datamodules", *map(str, arguments)]),
        redirect_stdout(output),
        redirect_stderr(output),
        pytest.raises(SystemExit) as end,
    ):
        main()
    assert (end.value.code or 0) == expected, output.getvalue()
    return output.getvalue()
