"""Index files: where they are, and what is in them: a few arrays in NumPy's format, compressed, never pickled."""

import hashlib
import os
import uuid
import zipfile
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from configs.problems import DataError
from configs.schema.section import Modality
from datamodules.indexing.index import ShardIndex
from datamodules.storage.locations import Shard

FORMAT_VERSION = 1
_DAMAGED = (OSError, ValueError, KeyError, EOFError, TypeError, RuntimeError, zipfile.BadZipFile, zlib.error)
"""What np.load raises for a file that is not whole, or not an archive of arrays."""


def index_file(shards: Sequence[Shard], index_dir: str | None, modality: Modality = "image") -> Path:
    """Where the index of these shards is written: in index_dir, else beside them, else in the user's cache.

    Each modality has an index of its own: samples with pictures and texts can be either.
    """
    near = beside(shards, modality)
    if index_dir is None and near is not None and os.access(near.parent, os.W_OK):
        return near
    folder = Path(index_dir).expanduser() if index_dir is not None else Path.home() / ".cache" / "effnet" / "indexes"
    place = [str(shards[0].parent.resolve())] if isinstance(shards[0], Path) else []
    return folder / _file_name([*place, *_names(shards)], modality)


def beside(shards: Sequence[Shard], modality: Modality = "image") -> Path | None:
    """Where the index is that was written beside local shards."""
    return shards[0].parent / _file_name(_names(shards), modality) if isinstance(shards[0], Path) else None


def _file_name(parts: Sequence[str], modality: Modality) -> str:
    text = "\n".join(parts).encode("utf-8", "surrogateescape")
    kind = "" if modality == "image" else f"-{modality}"
    return f".effnet-index{kind}-{hashlib.sha256(text).hexdigest()[:12]}.npz"


def _names(shards: Sequence[Shard]) -> list[str]:
    """URLs, and paths as seen from the first shard's folder, so that a folder may move with its index in it."""
    folder = shards[0].parent if isinstance(shards[0], Path) else Path("/")
    return [os.path.relpath(shard, folder) if isinstance(shard, Path) else str(shard) for shard in shards]


def save_index(index: ShardIndex, file: Path) -> None:
    """Write the index, replacing an older one in one step.

    Raises:
        DataError: If it cannot be written there.
    """
    # Not the process id: in containers, processes of several nodes have the same one, and write to the same folder.
    temporary = file.with_name(f"{file.name}.{uuid.uuid4().hex}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as stream:
            np.savez_compressed(
                stream,
                version=np.int64(FORMAT_VERSION),
                names=np.array(_names(index.shards)),
                shard_bytes=index.shard_bytes,
                shard_mtime_ns=index.shard_mtime_ns,
                shard_samples=index.shard_samples,
                offsets=index.offsets,
                sizes=index.sizes.astype(np.int32 if int(index.sizes.max()) < 2**31 else np.int64),
                labels=index.labels.astype(np.int32),
                shard_tags=np.array(index.shard_tags, dtype=str),
            )
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
    except OSError as error:
        raise not_written(file, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def not_written(file: Path, error: OSError) -> DataError:
    """What to say of a file that the system refuses."""
    return DataError(f"the index cannot be written to {file} ({error.strerror}): set data.index_dir")


def load_index(shards: Sequence[Shard], file: Path, modality: Modality = "image") -> ShardIndex | None:
    """The saved index of these shards, or None where there is none that can be read."""
    columns = ("shard_bytes", "shard_mtime_ns", "shard_samples", "offsets", "sizes", "labels")
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if int(arrays["version"]) != FORMAT_VERSION or arrays["names"].tolist() != _names(shards):
                return None
            tags = tuple(map(str, arrays["shard_tags"].tolist())) if "shard_tags" in arrays.files else ()
            found = {name: arrays[name].astype(np.int64) for name in columns}
            index = ShardIndex(tuple(shards), **found, shard_tags=tags, modality=modality)
    except _DAMAGED:
        return None
    per_shard = {array.shape for array in (index.shard_bytes, index.shard_mtime_ns, index.shard_samples)}
    per_sample = {array.shape for array in (index.offsets, index.sizes, index.labels)}
    fitting = per_shard == {(len(shards),)} and per_sample == {(int(index.shard_samples.sum()),)}
    return index if fitting and len(tags) in (0, len(shards)) else None
