"""``effnet shards verify`` and ``effnet shards info``: what is printed, and the exit code."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from configs.problems import DataError
from configs.run import EXIT_DO_NOT_RETRY, write_atomically
from datamodules.bars import terminal_bar
from datamodules.indexing.index import ShardIndex, open_index
from datamodules.indexing.urls import FoundShards, find_shards
from datamodules.inspecting.contact_sheet import IMAGES, contact_sheet
from datamodules.inspecting.survey import QUANTILE_NAMES, Survey, histogram, quantiles, random_samples, survey
from datamodules.inspecting.verify import verify as verify_shards
from datamodules.making.shards import read_classes, split_of
from datamodules.processes import default_workers

Shards = Annotated[str, typer.Argument(help="Path, glob, brace pattern, folder or list; several joined by ::")]
BAR_CHARACTERS = 40


def verify(
    shards: Shards,
    num_classes: Annotated[
        int | None,
        typer.Option(min=1, help="Labels are below it.", show_default="that of classes.json"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the findings, as JSON.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
) -> None:
    """Decode every image, and report each bad sample with shard, key and reason. Exit code 93 if there is one."""
    console = Console(stderr=True)
    listed = find_shards(shards)
    paths = _local(listed)
    samples, bad = verify_shards(
        paths,
        num_classes=num_classes,
        expected={path: listed.expected[path].samples for path in paths if path in listed.expected},
        workers=workers or default_workers(),
        bar=terminal_bar(console),
    )
    for each in bad:
        typer.echo(f"{each.shard}: {each.key if each.key is not None else '(shard)'}: {each.reason}")
    if json_file is not None:
        findings = {"shards": len(paths), "samples": samples, "bad": [each._asdict() for each in bad]}
        write_atomically(json_file, json.dumps(findings, indent=2) + "\n")
    found = f"{len(bad):,} bad" if bad else "all good"
    console.print(f"{samples:,} samples in {len(paths):,} shards: {found}", highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(EXIT_DO_NOT_RETRY)


def info(
    shards: Shards,
    contact_sheet_file: Annotated[
        Path | None, typer.Option("--contact-sheet", help=f"PNG file for {IMAGES} random images with their labels.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice of images.")] = 0,
    index_dir: Annotated[str | None, typer.Option(help="Folder for the index; beside the shards if left out.")] = None,
) -> None:
    """Print counts, class balance and sizes, split by split; draw a contact sheet."""
    errors = Console(stderr=True)
    groups: dict[str, list[Path]] = {}
    for path in _local(find_shards(shards)):
        groups.setdefault(split_of(path), []).append(path)
    out = Console(highlight=False)
    indexes = {}
    for split, paths in groups.items():
        with terminal_bar(errors)("indexing shards", len(paths)) as advance:
            indexes[split] = open_index(paths, index_dir=index_dir, progress=advance)
        classes = read_classes(paths[0].parent)
        _print(out, split, survey(indexes[split], seed=seed, num_classes=len(classes) if classes else None), classes)
    if contact_sheet_file is not None:
        if len(indexes) > 1:
            raise DataError(f"--contact-sheet shows one split, and these are {', '.join(indexes)}: name one's shards")
        [(split, index)] = indexes.items()
        _draw(contact_sheet_file, split, index, seed)
        errors.print(f"contact sheet: {contact_sheet_file}", highlight=False, soft_wrap=True)


def _local(found: FoundShards) -> list[Path]:
    paths = [shard for shard in found.shards if isinstance(shard, Path)]
    if len(paths) < len(found.shards):
        remote = next(shard for shard in found.shards if not isinstance(shard, Path))
        raise DataError(f"{remote}: only shards on this machine can be read here: copy them first")
    return paths


def _draw(file: Path, split: str, index: ShardIndex, seed: int) -> None:
    samples = list(random_samples(index, IMAGES, seed=seed))
    first = index.shards[0]
    assert isinstance(first, Path)
    classes = read_classes(first.parent)
    count = len(classes) if classes is not None else len(np.unique(index.labels))
    shown = f"{len(samples)} of {len(index):,} images at random, seed {seed} · {count:,} classes"
    contents = contact_sheet(samples, classes, title=split, subtitle=f"{shown} · {len(index.shards):,} shards")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(contents)


def _print(out: Console, split: str, found: Survey, classes: list[str] | None) -> None:
    table = Table(
        title=f"{split}: {found.samples:,} samples in {len(found.shard_samples):,} shards, "
        f"{decimal(int(found.shard_bytes.sum()))}",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("")
    for name in QUANTILE_NAMES:
        table.add_column(name, justify="right")
    rows = {
        "samples of a shard": found.shard_samples,
        "bytes of a shard": found.shard_bytes,
        "samples of a class": found.class_samples,
        f"width, pixels ({len(found.widths):,} images)": found.widths,
        "height, pixels": found.heights,
        "bytes of an image": found.image_bytes,
    }
    for label, values in rows.items():
        table.add_row(label, *(f"{value:,}" for value in quantiles(values)))
    out.print(table)
    total = sum(found.kinds.values())
    out.print("formats: " + ", ".join(f"{kind} {count / total:.1%}" for kind, count in found.kinds.items()))
    _print_balance(out, found, classes)


def _print_balance(out: Console, found: Survey, classes: list[str] | None) -> None:
    counts = found.class_samples

    def named(label: int) -> str:
        return f"{label} ({classes[label]})" if classes is not None and label < len(classes) else str(label)

    smallest, largest = int(counts.argmin()), int(counts.argmax())
    extremes = (
        f"smallest {named(smallest)} with {counts[smallest]:,}, largest {named(largest)} with {counts[largest]:,}"
    )
    out.print(
        f"classes: {len(counts):,}, " + (extremes if counts[smallest] < counts[largest] else "all of one size"),
        markup=False,
        soft_wrap=True,
    )
    bins = histogram(counts)
    most = max(count for _, _, count in bins)
    width = len(f"{bins[-1][1]:,}")
    for first, last, count in bins:
        length = max(1, round(BAR_CHARACTERS * count / most)) if count else 0
        bar = "\N{FULL BLOCK}" * length
        out.print(f"  {first:>{width},} to {last:>{width},} samples  {bar} {count:,}", soft_wrap=True)
    out.print()
