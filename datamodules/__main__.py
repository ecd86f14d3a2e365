"""``python -m datamodules``: what ``effnet shards`` runs. Imports no torch."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Protocol

import typer
from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY
from configs.problems import ConfigError, DataError, UnreachableError
from datamodules import digits, python_texts, spoken_digits
from datamodules.bars import progress_on
from datamodules.indexing.index_files import index_file
from datamodules.indexing.splits import open_split
from datamodules.indexing.urls import find_shards
from datamodules.inspecting.commands import (
    CACHE_BYTES,
    CACHE_DIR,
    CacheBytes,
    CacheDir,
    OfModality,
    Quiet,
    Shards,
    command_cache,
    info,
    verify,
)
from datamodules.making.command import build
from datamodules.making.shards import is_built

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and check WebDataset shards.")
console = Console(stderr=True)


app.command()(build)
app.command()(verify)
app.command()(info)


@app.command()
def index(
    shards: Shards,
    index_dir: Annotated[str | None, typer.Option(help="Folder for the index; beside the shards if left out.")] = None,
    modality: OfModality = "image",
    cache_dir: CacheDir = CACHE_DIR,
    cache_bytes: CacheBytes = CACHE_BYTES,
    quiet: Quiet = False,
) -> None:
    """Scan shards and write their index. Cut short, the same command goes on where it was."""
    cache = command_cache(shards, cache_dir, cache_bytes)
    found = find_shards(shards, cache.remote)
    with progress_on(console, quiet=quiet)("indexing shards", len(found.shards)) as progress:
        made = open_split(found, cache=cache, index_dir=index_dir, rescan=True, progress=progress, modality=modality)
    file = index_file(found.shards, index_dir, modality)
    console.print(f"{len(made):,} samples in {len(found.shards)} shards: {file}", soft_wrap=True)


OutDir = Annotated[Path, typer.Argument(help="Folder that the shards are written to.")]


@app.command(name="digits")
def build_digits(out_dir: OutDir, quiet: Quiet = False) -> None:
    """Write shards of scikit-learn's handwritten digits, unless they are there (needs the demo extra)."""
    _build(digits, out_dir, quiet=quiet)


@app.command(name="python-texts")
def build_python_texts(out_dir: OutDir, quiet: Quiet = False) -> None:
    """Write shards of the standard library's texts by kind (code, comments, …), unless they are there."""
    _build(python_texts, out_dir, quiet=quiet)


@app.command(name="spoken-digits")
def build_spoken_digits(out_dir: OutDir, quiet: Quiet = False) -> None:
    """Write shards of digits that espeak-ng says, unless they are there (needs the speech extra)."""
    _build(spoken_digits, out_dir, quiet=quiet)


class DataSet(Protocol):
    """A module that makes a data set."""

    TRAIN_SHARDS: int
    VALIDATION_SHARDS: int

    def build(self, out_dir: Path, progress: Callable[[int], None], /) -> None:
        """Write its shards."""


def _build(dataset: DataSet, out_dir: Path, *, quiet: bool) -> None:
    if is_built(out_dir):
        return
    shards = dataset.TRAIN_SHARDS + dataset.VALIDATION_SHARDS
    with progress_on(console, quiet=quiet)("writing shards", shards) as progress:
        dataset.build(out_dir, progress)


def main() -> None:
    """Run a command; a mistake of the user's is one message and exit code 93, a server that is away one and 1."""
    try:
        app(prog_name="effnet shards")
    except (ConfigError, DataError, UnreachableError, OSError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False, soft_wrap=True)
        sys.exit(1 if isinstance(error, UnreachableError) else EXIT_DO_NOT_RETRY)


if __name__ == "__main__":
    main()
