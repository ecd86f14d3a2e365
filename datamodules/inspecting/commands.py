"""``effnet shards verify`` and ``effnet shards info``: what is printed, and the exit code."""

import json
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table

from configs.exit_codes import EXIT_DO_NOT_RETRY
from configs.files import write_atomically
from configs.problems import DataError
from configs.schema import Data
from configs.schema.section import Modality
from datamodules.bars import progress_on
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.opening import open_index
from datamodules.indexing.splits import shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.inspecting.contact_sheet import IMAGES, contact_sheet
from datamodules.inspecting.kinds import KINDS
from datamodules.inspecting.shards import class_names, split_name
from datamodules.inspecting.survey import QUANTILE_NAMES, Survey, histogram, quantiles, random_samples, survey
from datamodules.inspecting.verify import verify as verify_shards
from datamodules.processes import default_workers
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard

Shards = Annotated[str, typer.Argument(help="Path, URL, glob, brace pattern, folder or list; several joined by ::")]
CacheDir = Annotated[str, typer.Option(help="Folder where remote shards are kept.")]
CacheBytes = Annotated[int, typer.Option(min=1, help="Most bytes of remote shards kept there.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress: results and errors alone.")]
OfModality = Annotated[Modality, typer.Option(help="What samples are; data.modality has more.")]
CACHE_DIR: str = Data.model_fields["cache_dir"].default
CACHE_BYTES: int = Data.model_fields["cache_bytes"].default
BAR_CHARACTERS = 40


def verify(
    shards: Shards,
    num_classes: Annotated[
        int | None,
        typer.Option(min=1, help="Labels are below it.", show_default="that of classes.json"),
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="File for the findings, as JSON.")] = None,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")] = None,
    modality: OfModality = "image",
    cache_dir: CacheDir = CACHE_DIR,
    cache_bytes: CacheBytes = CACHE_BYTES,
    quiet: Quiet = False,
) -> None:
    """Decode every sample, and report each bad sample with shard, key and reason. Exit code 93 if there is one."""
    console = Console(stderr=True)
    cache = command_cache(shards, cache_dir, cache_bytes)
    found = find_shards(shards, cache.remote)
    samples, bad = verify_shards(
        found.shards,
        num_classes=num_classes,
        expected={shard: expected.samples for shard, expected in found.expected.items()},
        cache=cache,
        workers=workers or default_workers(),
        bar=progress_on(console, quiet=quiet),
        modality=modality,
    )
    for each in bad:
        typer.echo(f"{each.shard}: {each.key if each.key is not None else '(shard)'}: {each.reason}")
    if json_file is not None:
        findings = {"shards": len(found.shards), "samples": samples, "bad": [each._asdict() for each in bad]}
        write_atomically(json_file, json.dumps(findings, indent=2) + "\n")
    judged = f"{len(bad):,} bad" if bad else "all good"
    console.print(f"{samples:,} samples in {len(found.shards):,} shards: {judged}", highlight=False, soft_wrap=True)
    if bad:
        raise typer.Exit(EXIT_DO_NOT_RETRY)


def info(
    shards: Shards,
    contact_sheet_file: Annotated[
        Path | None, typer.Option("--contact-sheet", help=f"PNG file for {IMAGES} random images with their labels.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random choice of images.")] = 0,
    modality: OfModality = "image",
    index_dir: Annotated[str | None, typer.Option(help="Folder for the index; beside the shards if left out.")] = None,
    cache_dir: CacheDir = CACHE_DIR,
    cache_bytes: CacheBytes = CACHE_BYTES,
    quiet: Quiet = False,
) -> None:
    """Print counts, class balance and sizes, split by split; draw a contact sheet."""
    errors = Console(stderr=True)
    cache = command_cache(shards, cache_dir, cache_bytes)
    groups: dict[str, list[Shard]] = {}
    for shard in find_shards(shards, cache.remote).shards:
        groups.setdefault(split_name(shard), []).append(shard)
    out = Console(highlight=False)
    indexes = {}
    for split, members in groups.items():
        with progress_on(errors, quiet=quiet)("indexing shards", len(members)) as advance:
            indexes[split] = open_index(members, index_dir=index_dir, cache=cache, progress=advance, modality=modality)
        classes = class_names(members[0], cache)
        num_classes = len(classes) if classes else None
        _print(out, split, survey(indexes[split], seed=seed, num_classes=num_classes, cache=cache), classes)
    if contact_sheet_file is not None:
        if len(indexes) > 1:
            raise DataError(f"--contact-sheet shows one split, and these are {', '.join(indexes)}: name one's shards")
        [(split, index)] = indexes.items()
        _draw(contact_sheet_file, split, index, seed, cache)
        errors.print(f"contact sheet: {contact_sheet_file}", highlight=False, soft_wrap=True)


def command_cache(shards: str, cache_dir: str, cache_bytes: int) -> ShardCache:
    """The cache of a command about these shards: like training's, where its options say nothing else."""
    return shard_cache(Data(train_shards=shards, val_shards=shards, cache_dir=cache_dir, cache_bytes=cache_bytes))


def _draw(file: Path, split: str, index: ShardIndex, seed: int, cache: ShardCache) -> None:
    samples = list(random_samples(index, IMAGES, seed=seed, cache=cache))
    classes = class_names(index.shards[0], cache)
    count = len(classes) if classes is not None else len(np.unique(index.labels))
    shown = (
        f"{len(samples)} of {len(index):,} {KINDS[index.modality].plural} at random, seed {seed} · {count:,} classes"
    )
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
    }
    for number, (name, values) in enumerate(found.figures.items()):
        rows[name if number else f"{name} ({len(values):,} {KINDS[found.modality].plural})"] = values
    rows[f"bytes of {KINDS[found.modality].name}"] = found.sample_bytes
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
