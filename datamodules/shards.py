"""Writing WebDataset shards: deterministic bytes, whole files or none."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from configs.problems import DataError
from datamodules.index import IMAGE_EXTENSIONS
from datamodules.order import permutation


class Image(NamedTuple):
    """An image to be written: the key of its sample, its extension, its label, and a way to get its bytes."""

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
        DataError: If there are fewer images than shards.
    """
    if not 0 < num_shards <= len(images):
        raise DataError(f"{split}: {len(images)} images cannot fill {num_shards} shards")
    out_dir.mkdir(parents=True, exist_ok=True)
    shuffled = permutation(len(images), seed, len(images))
    bounds = [i * len(images) // num_shards for i in range(num_shards + 1)]
    digits = max(5, len(str(num_shards - 1)))
    paths, counts = [], []
    for shard, (first, last) in enumerate(pairwise(bounds)):
        path = out_dir / f"{name}-{split}-{shard:0{digits}d}.tar"
        _write_shard(path, (images[int(i)] for i in shuffled[first:last]))
        paths.append(path)
        counts.append(last - first)
        if progress is not None:
            progress(1)
    _update_info(out_dir, split, [path.name for path in paths], counts)
    return paths


def write_classes(out_dir: Path, names: Sequence[str]) -> None:
    """``classes.json``: class names, in the order of the labels."""
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "classes.json").write_text(
        json.dumps(list(names), indent=0, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def read_image_folder(root: Path) -> tuple[list[Image], list[str]]:
    """Images of a tree ``root/<class>/….jpg``, and the class names in sorted order.

    Raises:
        DataError: If there is no class folder, or a class has no image.
    """
    classes = sorted(path.name for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    if not classes:
        raise DataError(f"{root}: no folder per class in it")
    images: list[Image] = []
    for label, name in enumerate(classes):
        files = sorted(p for p in (root / name).rglob("*") if p.suffix.lower().lstrip(".") in IMAGE_EXTENSIONS)
        if not files:
            raise DataError(f"{root / name}: no image ({', '.join(IMAGE_EXTENSIONS)}) in it")
        for file in files:
            key = "_".join(file.relative_to(root).with_suffix("").parts).replace(".", "_")
            images.append(Image(key, file.suffix.lower().lstrip("."), label, file.read_bytes))
    return images, classes


def _write_shard(path: Path, images: Iterable[Image]) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for image in images:
                for extension, contents in ((image.extension, image.read()), ("cls", str(image.label).encode())):
                    member = tarfile.TarInfo(f"{image.key}.{extension}")
                    member.size = len(contents)
                    archive.addfile(member, io.BytesIO(contents))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _update_info(out_dir: Path, split: str, names: list[str], counts: list[int]) -> None:
    """``_info.json`` as timm's wds reader knows it."""
    path = out_dir / "_info.json"
    info = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"splits": {}}
    info["splits"][split] = {"name": split, "filenames": names, "shard_lengths": counts, "num_samples": sum(counts)}
    path.write_text(json.dumps(info, indent=2) + "\n", encoding="utf-8")
