"""What a network answers, and the files that hold it: CSV, JSON lines, Parquet."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from configs.problems import DataError

ROWS_OF_A_GROUP = 1 << 14
"""Of a Parquet file: what is in memory before it is written."""


class Answer(NamedTuple):
    """To one image.

    Attributes:
        number: In the inputs.
        image: Path of its file, or shard and key.
        label: That a shard has for it; None where there is none.
        labels: The most probable, the first first; empty if the image is bad.
        probabilities: Of these.
        error: Why the image is bad.
    """

    number: int
    image: str
    label: int | None
    labels: tuple[int, ...]
    probabilities: tuple[float, ...]
    error: str | None


Write: TypeAlias = Callable[[Iterable[Answer]], None]


def class_name(classes: Sequence[str] | None, label: int) -> str | None:
    """What a label is called, where that is known."""
    return classes[label] if classes is not None else None


def check_suffix(file: Path) -> None:
    """See that a file can be written before there is anything to write.

    Raises:
        DataError: If its suffix is none of those known, or a package is missing.
    """
    if file.suffix not in WRITERS:
        raise DataError(f"--out {file}: its suffix is none of {', '.join(WRITERS)}")
    if file.suffix == ".parquet" and find_spec("pyarrow") is None:
        raise DataError("Parquet is written by PyArrow: pip install 'effnet[parquet]'")


@contextmanager
def answer_file(file: Path, classes: Sequence[str] | None, *, top_k: int) -> Iterator[Write]:
    """Gives what writes more answers, in the form that the file's suffix says. The file is there whole or not at all.

    Args:
        file: To write.
        classes: Names by label.
        top_k: Most classes of an answer.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with WRITERS[file.suffix](temporary, classes, top_k) as write:
            yield write
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def as_object(answer: Answer, classes: Sequence[str] | None) -> dict[str, Any]:
    """A line of JSON."""
    found: dict[str, Any] = {"image": answer.image}
    if answer.label is not None:
        found["label"] = answer.label
    if answer.error is not None:
        return found | {"error": answer.error}
    pairs = zip(answer.labels, answer.probabilities, strict=True)
    found["predictions"] = [
        {"label": label, "class": class_name(classes, label), "probability": probability}
        for label, probability in pairs
    ]
    return found


def _columns(top_k: int) -> list[str]:
    """Of a table: ``label_1``, ``class_1``, ``probability_1`` and so on after what there is once."""
    return [
        *("image", "label", "error"),
        *(f"{name}_{place}" for place in range(1, top_k + 1) for name in ("label", "class", "probability")),
    ]


def _row(answer: Answer, classes: Sequence[str] | None, top_k: int) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(_columns(top_k))
    row |= {"image": answer.image, "label": answer.label, "error": answer.error}
    for place, (label, probability) in enumerate(zip(answer.labels, answer.probabilities, strict=True), start=1):
        row |= {f"label_{place}": label, f"class_{place}": class_name(classes, label)}
        row[f"probability_{place}"] = probability
    return row


@contextmanager
def _csv_file(file: Path, classes: Sequence[str] | None, top_k: int) -> Iterator[Write]:
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer = csv.DictWriter(out, _columns(top_k))
        writer.writeheader()
        yield lambda answers: writer.writerows(_row(answer, classes, top_k) for answer in answers)


@contextmanager
def _json_lines(file: Path, classes: Sequence[str] | None, top_k: int) -> Iterator[Write]:
    with file.open("w", encoding="utf-8") as out:
        yield lambda answers: out.writelines(json.dumps(as_object(answer, classes)) + "\n" for answer in answers)


@contextmanager
def _parquet(file: Path, classes: Sequence[str] | None, top_k: int) -> Iterator[Write]:
    """In groups of `ROWS_OF_A_GROUP` rows and a few more."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"image": pa.string(), "error": pa.string(), "class": pa.string(), "probability": pa.float32()}
    fields = [(name, kinds.get(name.rpartition("_")[0] or name, pa.int64())) for name in _columns(top_k)]
    schema, rows = pa.schema(fields), list[dict[str, Any]]()
    with pq.ParquetWriter(file, schema) as writer:

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))
            rows.clear()

        def write(answers: Iterable[Answer]) -> None:
            rows.extend(_row(answer, classes, top_k) for answer in answers)
            if len(rows) >= ROWS_OF_A_GROUP:
                flush()

        yield write
        if rows:
            flush()


WRITERS: dict[str, Callable[[Path, Sequence[str] | None, int], AbstractContextManager[Write]]] = {
    ".csv": _csv_file,
    ".jsonl": _json_lines,
    ".parquet": _parquet,
}
