"""``python -m datamodules``: what ``effnet shards`` runs. Imports no torch."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from configs.problems import ConfigError, DataError
from configs.run import EXIT_DO_NOT_RETRY
from datamodules import digits
from datamodules.index import build_index, index_file, save_index
from datamodules.shards import read_image_folder, write_classes, write_split
from datamodules.urls import expand

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and check WebDataset shards.")
console = Console(stderr=True)


@app.command()
def build(
    source: Annotated[Path, typer.Argument(help="Folder with one folder of images per class.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder that the shards are written to.")],
    name: Annotated[str, typer.Option(help="First part of the shards' names.")] = "imagenet1k",
    split: Annotated[str, typer.Option(help="Second part of the shards' names.")] = "train",
    num_shards: Annotated[int, typer.Option(min=1, help="Shards to write.")] = 1024,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffle over all shards.")] = 0,
) -> None:
    """Write shards from a folder of images."""
    images, classes = read_image_folder(source)
    with _bar("writing shards", num_shards) as progress:
        write_split(images, out_dir, name=name, split=split, num_shards=num_shards, seed=seed, progress=progress)
    write_classes(out_dir, classes)
    console.print(f"{len(images):,} images of {len(classes)} classes in {num_shards} shards under {out_dir}")


@app.command()
def index(
    shards: Annotated[str, typer.Argument(help="Path, glob, brace pattern, folder or list; several joined by ::")],
    index_dir: Annotated[str | None, typer.Option(help="Folder for the index; beside the shards if left out.")] = None,
) -> None:
    """Scan shards and write their index."""
    paths = expand(shards)
    with _bar("indexing shards", len(paths)) as progress:
        found = build_index(paths, progress=progress)
    file = index_file(paths, index_dir)
    save_index(found, file)
    console.print(f"{len(found):,} samples in {len(paths)} shards: {file}")


@app.command(name="digits")
def build_digits(out_dir: Annotated[Path, typer.Argument(help="Folder that the shards are written to.")]) -> None:
    """Write shards of scikit-learn's handwritten digits, unless they are there (needs the demo extra)."""
    if digits.is_built(out_dir):
        return
    with _bar("writing shards", digits.TRAIN_SHARDS + digits.VALIDATION_SHARDS) as progress:
        digits.build(out_dir, progress)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda count: progress.advance(task, count)


def main() -> None:
    """Run a command; a mistake of the user's is one message and exit code 93."""
    try:
        app(prog_name="effnet shards")
    except (ConfigError, DataError) as error:
        console.print(f"error: {error}", style="red", highlight=False, markup=False)
        sys.exit(EXIT_DO_NOT_RETRY)


if __name__ == "__main__":
    main()
