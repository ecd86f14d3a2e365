"""The index of a split, from its file where that is up to date; made once, whoever else wants it.

A saved one is checked against size and modification time of every shard, or the server's tag.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from configs.schema.section import Modality
from datamodules.indexing.building import build_index, versions_of
from datamodules.indexing.index import ShardIndex
from datamodules.indexing.index_files import beside, index_file, load_index, not_written, save_index
from datamodules.indexing.journal import Journal
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Shard
from datamodules.storage.locks import NO_LOCKS, file_lock


def open_index(
    shards: Sequence[Shard],
    *,
    index_dir: str | None = None,
    cache: ShardCache | None = None,
    rescan: bool = False,
    vouched: bool = False,
    progress: Callable[[int], None] | None = None,
    modality: Modality = "image",
) -> ShardIndex:
    """The index of these shards: read where it is up to date, else made and saved.

    Of several processes that find none, one makes it while the others wait. A scan that is cut short goes on where it
    was.

    Args:
        shards: In the order in which samples are numbered.
        index_dir: Folder for the index; None keeps it beside the shards or in the user's cache.
        cache: Through which remote shards are read; needed where there is one.
        rescan: Scan all shards, whatever an earlier index says.
        vouched: The saved index has just been found up to date, on this node: servers are not asked again.
        progress: Called with the number of shards done, as they are.
        modality: What each sample has to be.

    Raises:
        DataError: If a shard cannot be read.
        UnreachableError: If a server does not answer.
    """
    file = index_file(shards, index_dir, modality)
    near = beside(shards, modality)
    places = list(dict.fromkeys([near, file])) if index_dir is None and near is not None else [file]
    found, _ = (None, None) if rescan else _saved(shards, places, cache, vouched=vouched, modality=modality)
    if found is not None:
        return found
    with ExitStack() as stack:
        journal = _begin(stack, file, shards)
        found, outdated = (None, None) if rescan else _saved(shards, places, cache, vouched=vouched, modality=modality)
        if found is None:
            found = build_index(
                shards, reuse=outdated, cache=cache, journal=journal, progress=progress, modality=modality
            )
            save_index(found, file)
        if journal is not None:
            journal.remove()
    return found


def _begin(stack: ExitStack, file: Path, shards: Sequence[Shard]) -> Journal | None:
    """Wait until no other process makes this index, and take up what is left of an earlier attempt.

    A file system without locks does without both: several may write the same index, each in one step.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        stack.enter_context(file_lock(file.with_suffix(".lock")))
        return stack.enter_context(Journal(file.with_suffix(".part"), shards))
    except OSError as error:
        if error.errno in NO_LOCKS:
            return None
        raise not_written(file, error) from error


def _saved(
    shards: Sequence[Shard], places: Sequence[Path], cache: ShardCache | None, *, vouched: bool, modality: Modality
) -> tuple[ShardIndex | None, ShardIndex | None]:
    """The saved index that is up to date, or else the last one that is not."""
    saved = [index for index in (load_index(shards, place, modality) for place in places) if index is not None]
    asked = versions_of(shards, cache) if saved and not vouched else []
    for index in saved:
        versions = versions_of(shards, cache, vouched=index) if vouched else asked
        if all(index.version(i) == version for i, version in enumerate(versions)):
            return index, None
    return None, saved[-1] if saved else None
