"""Images named by a table: CSV with a header, or Parquet, with a path or the bytes of each image, and a label."""

import csv
import glob
import json
import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from configs.problems import DataError
from datamodules.bars import Bar, no_bar
from datamodules.indexing import tar
from datamodules.making.listing import Listing, Places, Strings, UniqueKeys, digest_of, file_status
from datamodules.making.shards import write_tar

SUFFIXES = (".csv", ".parquet")
PATH_COLUMNS = ("path", "image", "bytes")
"""Names that are looked for where none is given, in this order."""
LABEL_COLUMN = "label"
MAX_LABEL = 2**31 - 1
"""Of what the index keeps."""
ROWS_AT_ONCE = 128
"""Images in memory while a Parquet file is copied: 15 MB of ImageNet's."""
SHOWN = 3


@dataclass
class _Table:
    """Rows as they are read: what names the image, and its label as text or number."""

    names: Strings = field(default_factory=Strings)
    labels: list[str | int] = field(default_factory=list)
    distinct: dict[str | int, str | int] = field(default_factory=dict)

    def add(self, name: str, label: str | int) -> None:
        self.names.append(name)
        self.labels.append(self.distinct.setdefault(label, label))  # one object for all rows of a class


def manifest_files(source: str) -> list[Path]:
    """The tables that a path, a folder of Parquet files or a quoted glob names; empty where it names none."""
    path = Path(source)
    if path.is_dir():
        return sorted(path.glob("*.parquet"))
    found = [path] if path.is_file() else [Path(name) for name in sorted(glob.glob(source))]
    return [file for file in found if file.suffix.lower() in SUFFIXES]


def list_manifest(
    files: Sequence[Path],
    *,
    path_column: str | None = None,
    label_column: str | None = None,
    copy_to: Path,
    bar: Bar = no_bar,
) -> Listing:
    """Images of tables of one kind. Paths are relative to the folder of their table.

    Text labels become positions among the sorted distinct ones; whole numbers stay. Bytes in Parquet can be read in
    order only: ``places`` copies them to a file ``copy_to-<digest>.images`` first.

    Raises:
        DataError: If a column, a label or a file is missing, or PyArrow is not installed.
    """
    kinds = {file.suffix.lower() for file in files}
    if len(kinds) > 1:
        raise DataError(f"{files[0]} and {len(files) - 1} more are of different kinds: {', '.join(sorted(kinds))}")
    if kinds == {".csv"}:
        return _of_paths(files, _read_csv(files, path_column, label_column), None)
    return _list_parquet(files, path_column, label_column, copy_to, bar)


def _read_csv(files: Sequence[Path], path_column: str | None, label_column: str | None) -> _Table:
    table = _Table()
    for file in files:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream, strict=True)
            try:
                path, label = _columns(file, reader.fieldnames or (), path_column, label_column)
                for row in reader:
                    if not row[path] or not row[label]:
                        raise DataError(f"{file}: line {reader.line_num} has no {label if row[path] else path}")
                    table.add(str(file.parent / row[path]), row[label])
            except (csv.Error, UnicodeDecodeError) as error:
                raise DataError(f"{file}: line {reader.line_num + 1}: not CSV in UTF-8 ({error})") from None
    if all(_is_number(str(text)) for text in table.distinct):
        numbers = {text: _number(file, str(text)) for text in table.distinct}
        table.labels = [numbers[text] for text in table.labels]
    return table


def _is_number(text: str) -> bool:
    """``7`` is a label that stays; ``007`` names a class."""
    digits = text.removeprefix("-")
    return digits.isascii() and digits.isdigit() and (digits == "0" or not digits.startswith("0"))


def _number(source: Path, text: str) -> int:
    try:
        return int(text)
    except ValueError:  # of thousands of digits
        raise DataError(f"{source}: a label has {len(text):,} digits: they go up to {MAX_LABEL}") from None


def _columns(file: Path, names: Sequence[str], path: str | None, label: str | None) -> tuple[str, str]:
    def chosen(option: str, given: str | None, defaults: Sequence[str]) -> str:
        wanted = [given] if given is not None else defaults
        found = next((name for name in wanted if name in names), None)
        if found is None:
            raise DataError(
                f"{file}: no column {' or '.join(wanted)}, but {', '.join(names) or 'none'}: choose one by {option}"
            )
        return found

    return chosen("--path-column", path, PATH_COLUMNS), chosen("--label-column", label, (LABEL_COLUMN,))


def _labels(source: Path, labels: Sequence[str | int]) -> "tuple[array[int], tuple[str, ...] | None]":
    texts = {label for label in labels if isinstance(label, str)}
    if not labels:
        raise DataError(f"{source}: no row in it")
    if not texts:
        numbers = [int(label) for label in labels]
        for number in (min(numbers), max(numbers)):
            if not 0 <= number <= MAX_LABEL:
                raise DataError(f"{source}: a label is {number}: they go from 0 to {MAX_LABEL}")
        return array("q", numbers), None
    classes = tuple(sorted(texts))
    position = {name: number for number, name in enumerate(classes)}
    return array("q", [position[str(label)] for label in labels]), classes


def _of_paths(files: Sequence[Path], table: _Table, class_names: tuple[str, ...] | None) -> Listing:
    labels, classes = _labels(files[0], table.labels)
    keys, missing, sizes, times = UniqueKeys(), list[str](), array("q"), array("q")
    root = os.path.join(os.path.commonpath([os.path.abspath(file.parent) for file in files]), "")
    for i in range(len(table.names)):
        name = table.names[i]
        try:
            status = file_status(name)
        except FileNotFoundError:
            missing.append(name)
            continue
        keys.add(PurePath(os.path.abspath(name).removeprefix(root)))
        sizes.append(status.st_size)
        times.append(status.st_mtime_ns)
    if missing:
        raise DataError(
            f"{files[0]}: {len(missing):,} of {len(table.names):,} images do not exist: {', '.join(missing[:SHOWN])}"
        )
    places = Places(table.names, np.zeros(len(sizes), dtype=np.int64), np.array(sizes))
    digest = digest_of(keys.keys.digest(), labels.tobytes(), sizes.tobytes(), times.tobytes())
    return Listing(keys.keys, np.array(labels), classes or class_names, sum(sizes), digest, lambda: places)


def _list_parquet(
    files: Sequence[Path], path_column: str | None, label_column: str | None, copy_to: Path, bar: Bar
) -> Listing:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise DataError("Parquet is read by PyArrow: pip install 'effnet[parquet]'") from None
    table, image_bytes, version = _Table(), 0, list[bytes]()
    names: tuple[str, ...] | None = None
    columns = set[str | None]()
    for file in files:
        try:
            parquet = pq.ParquetFile(file)
            schema = parquet.schema_arrow
            path, label = _columns(file, schema.names, path_column, label_column)
            kind = schema.field(path).type
            struct = pa.types.is_struct(kind)
            if struct and "bytes" not in [kind.field(i).name for i in range(kind.num_fields)]:
                raise DataError(f"{file}: column {path} is a struct without bytes")
            text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            if not struct and not text and not pa.types.is_binary(kind) and not pa.types.is_large_binary(kind):
                raise DataError(f"{file}: column {path} is {kind}: paths, bytes or a struct of bytes and path is read")
            read = [f"{path}.path", label] if struct else [path, label] if text else [label]
            binary = None if text else f"{path}.bytes" if struct else path
            columns.add(binary)
            _read_rows(file, parquet.iter_batches(columns=read), path, label, table)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not readable as Parquet ({error})") from None
        image_bytes += _column_bytes(parquet, binary)
        names = names or _class_names(schema.metadata or {}, label)
        stat = file.stat()
        version.append(f"{file.name} {stat.st_size} {stat.st_mtime_ns} {binary}\n".encode())
    [binary, *others] = columns
    if others:
        raise DataError(f"{files[0]} and {len(files) - 1} more do not all have paths, or all bytes in one column")
    if binary is None:
        return _of_paths(files, table, names)
    labels, classes = _labels(files[0], table.labels)
    keys = UniqueKeys()
    for i in range(len(table.names)):
        keys.add(PurePath(table.names[i]))
    digest = digest_of(keys.keys.digest(), labels.tobytes(), *version)
    copy = copy_to.with_name(f"{copy_to.name}-{digest[:12]}.images")

    def places() -> Places:
        if not copy.exists():
            _copy_images(files, binary, copy, len(labels), bar)
        return _places_in_copy(copy, len(labels))

    return Listing(keys.keys, np.array(labels), classes or names, image_bytes, digest, places)


def _read_rows(file: Path, batches: Iterable[Any], path: str, label: str, table: _Table) -> None:
    first = len(table.names)
    for batch in batches:
        rows = batch.to_pydict()
        images = rows.get(path, [None] * len(batch))
        for image, value in zip(images, rows[label], strict=True):
            name = image.get("path") if isinstance(image, dict) else image
            if not isinstance(value, (str, int)) or isinstance(value, bool):
                raise DataError(
                    f"{file}: row {len(table.names) - first} has label {value!r}: text or a whole number is one"
                )
            if isinstance(image, str):
                name = str(file.parent / image)
            table.add(name or f"{len(table.names):08d}", value)


def _column_bytes(parquet: Any, column: str | None) -> int:
    groups = (parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups))
    chunks = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema == column)


def _class_names(metadata: dict[bytes, bytes], label: str) -> tuple[str, ...] | None:
    """Names that Hugging Face's datasets keeps in the schema."""
    try:
        features = json.loads(metadata.get(b"huggingface", b"{}"))["info"]["features"]
        return tuple(map(str, features[label]["names"]))
    except (ValueError, KeyError, TypeError):
        return None


def _copy_images(files: Sequence[Path], column: str, copy: Path, count: int, bar: Bar) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches(file: Path) -> Iterator[Any]:
        try:
            yield from pq.ParquetFile(file).iter_batches(batch_size=ROWS_AT_ONCE, columns=[column])
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{file}: not readable as Parquet ({error})") from None

    def rows() -> Iterator[tuple[str, bytes]]:
        number = 0
        for file in files:
            for batch in batches(file):
                images = batch.column(0)
                for image in images.field("bytes") if "." in column and hasattr(images, "field") else images:
                    yield f"{number:08d}", image.as_py() or b""
                    number += 1
                    advance(1)

    copy.parent.mkdir(parents=True, exist_ok=True)
    with bar("copying images", count) as advance:
        write_tar(copy, rows())


def _places_in_copy(copy: Path, count: int) -> Places:
    with copy.open("rb") as file:
        found = list(tar.members(file, length=copy.stat().st_size, source=str(copy)))
    assert len(found) == count
    offsets = np.array([member.data_offset for member in found], dtype=np.int64)
    sizes = np.array([member.size for member in found], dtype=np.int64)
    return Places(Strings([str(copy)]), offsets, sizes)
