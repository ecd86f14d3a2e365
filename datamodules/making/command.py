"""``effnet shards build``: recognises its source, and says what it made."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal

from configs.problems import DataError
from datamodules.bars import Bar, progress_on
from datamodules.images.encode import DEFAULT_QUALITY
from datamodules.making.build import build_split, copy_prefix
from datamodules.making.ilsvrc import list_ilsvrc
from datamodules.making.listing import Listing, list_image_folder
from datamodules.making.manifest import LABEL_COLUMN, PATH_COLUMNS, list_manifest, manifest_files
from datamodules.making.record import Written
from datamodules.making.shard import Settings
from datamodules.processes import default_workers

TRAIN_SHARDS, OTHER_SHARDS = 1024, 64
"""Of ImageNet: about 1,251 and 781 samples each, as in the shards that timm's authors publish."""
MOST_SHOWN = 20
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress: results and errors alone.")]


def build(
    source: Annotated[
        str,
        typer.Argument(
            help="Folder with one folder of images per class; ILSVRC2012_img_train.tar or _val.tar as downloaded; or a "
            "CSV or Parquet file (folder, quoted glob) with a path or bytes, and a label, per row."
        ),
    ],
    out_dir: Annotated[Path, typer.Argument(help="Folder that the shards are written to.")],
    name: Annotated[str, typer.Option(help="First part of the shards' names.")] = "imagenet1k",
    split: Annotated[
        str | None, typer.Option(help="Second part of their names.", show_default="train, or what the tar is")
    ] = None,
    num_shards: Annotated[
        int | None,
        typer.Option(min=1, help="Shards to write.", show_default=f"{TRAIN_SHARDS} for train, else {OTHER_SHARDS}"),
    ] = None,
    shard_size_bytes: Annotated[
        int | None, typer.Option(min=1, help="Bytes that a shard is to have, about; in place of --num-shards.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle over all shards.")] = 0,
    resize: Annotated[
        int | None, typer.Option(min=1, help="Short side in pixels: larger images become JPEG of that size.")
    ] = None,
    quality: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="Of the JPEG that --resize makes.", show_default=str(DEFAULT_QUALITY)),
    ] = None,
    devkit: Annotated[
        Path | None, typer.Option(help="ILSVRC2012_devkit_t12.tar.gz or its folder: the validation tar's labels.")
    ] = None,
    path_column: Annotated[
        str | None,
        typer.Option(
            help="A table's column of paths, bytes, or structs as Hugging Face writes them.",
            show_default=", ".join(PATH_COLUMNS),
        ),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option(help="A table's column of labels or class names.", show_default=LABEL_COLUMN)
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Leave out, and list, what is no readable image.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace shards of another build under the same names.")
    ] = False,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    quiet: Quiet = False,
) -> None:
    """Write shards, shuffled over all of them. Stopped or killed, the same command goes on."""
    console = Console(stderr=True)
    if num_shards is not None and shard_size_bytes is not None:
        raise DataError(f"--num-shards is {num_shards} and --shard-size-bytes {shard_size_bytes}: give one of the two")
    if quality is not None and resize is None:
        raise DataError(f"--quality is {quality}, but without --resize no image is encoded")
    for option, text in (("--name", name), ("--split", split)):
        if text is not None and ("/" in text or "\0" in text or not text):
            raise DataError(f"{option} is {text!r}: it is a part of the shards' names, so without / and not empty")
    bar = progress_on(console, quiet=quiet)
    table_columns = {"--path-column": path_column, "--label-column": label_column}
    copies = copy_prefix(out_dir, name, split or "train")
    listing, natural_split = _list(source, devkit=devkit, columns=table_columns, copy_to=copies, bar=bar)
    split = split or natural_split
    if num_shards is None and shard_size_bytes is None:
        num_shards = TRAIN_SHARDS if split == "train" else OTHER_SHARDS
    settings = Settings(
        name=name,
        split=split,
        seed=seed,
        num_shards=num_shards,
        shard_size_bytes=shard_size_bytes,
        short_side=resize,
        quality=quality or DEFAULT_QUALITY,
        skip_bad=skip_bad,
    )
    written = build_split(
        listing, out_dir, settings, workers=workers or default_workers(), overwrite=overwrite, bar=bar
    )
    _report(console, listing, written, out_dir)


def _list(
    source: str, *, devkit: Path | None, columns: dict[str, str | None], copy_to: Path, bar: Bar
) -> tuple[Listing, str]:
    """What a source has, and the split that it is of."""
    tables = manifest_files(source)
    is_archive = source.lower().endswith(".tar")
    unused = [option for option, value in columns.items() if value is not None and not tables]
    unused += ["--devkit"] if devkit is not None and not is_archive else []
    if unused:
        raise DataError(f"{' and '.join(unused)} given, but {source} is not what that is for")
    if tables:
        path, label = columns.values()
        return list_manifest(tables, path_column=path, label_column=label, copy_to=copy_to, bar=bar), "train"
    if is_archive:
        return list_ilsvrc(Path(source), devkit, bar=bar)
    if Path(source).is_dir():
        return list_image_folder(Path(source)), "train"
    what = "does not exist" if not Path(source).exists() else "is none of these"
    raise DataError(f"{source} {what}: a folder of classes, an ILSVRC2012 tar, a CSV or Parquet file")


def _report(console: Console, listing: Listing, written: list[Written], out_dir: Path) -> None:
    left_out = [(shard.shard, key, reason) for shard in written for key, reason in shard.left_out]
    for shard, key, reason in left_out[:MOST_SHOWN]:
        console.print(f"left out of {shard}: {key}: {reason}", soft_wrap=True, highlight=False, markup=False)
    if len(left_out) > MOST_SHOWN:
        console.print(f"left out: {len(left_out) - MOST_SHOWN:,} more")
    classes = len(listing.classes) if listing.classes is not None else len(np.unique(listing.labels))
    samples = sum(shard.samples for shard in written)
    size = decimal(sum(shard.size for shard in written))
    console.print(
        f"{samples:,} images of {classes:,} classes in {len(written):,} shards ({size}) under {out_dir}"
        + (f", {len(left_out):,} left out" if left_out else ""),
        soft_wrap=True,
        highlight=False,
    )
