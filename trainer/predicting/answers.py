"""What a network answers, and the files that hold it: CSV, JSON lines, Parquet."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from configs.problems import DataError


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


def write_answers(file: Path, answers: Sequence[Answer], classes: Sequence[str] | None) -> None:
    """Write them in the form that the file's suffix says; whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        WRITERS[file.suffix](temporary, answers, classes)
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


def _rows(answers: Iterable[Answer], classes: Sequence[str] | None) -> Iterator[dict[str, Any]]:
    """Flat ones, with columns such as ``label_1``, ``class_1`` and ``probability_1``."""
    answers = list(answers)
    count = max(len(answer.labels) for answer in answers)
    for answer in answers:
        row: dict[str, Any] = {"image": answer.image, "label": answer.label, "error": answer.error}
        for place in range(count):
            known = place < len(answer.labels)
            label = answer.labels[place] if known else None
            row[f"label_{place + 1}"] = label
            row[f"class_{place + 1}"] = class_name(classes, label) if label is not None else None
            row[f"probability_{place + 1}"] = answer.probabilities[place] if known else None
        yield row


def _write_csv(file: Path, answers: Sequence[Answer], classes: Sequence[str] | None) -> None:
    rows = _rows(answers, classes)
    first = next(rows)
    with file.open("w", newline="", encoding="utf-8", errors="surrogateescape") as out:
        writer = csv.DictWriter(out, list(first))
        writer.writeheader()
        writer.writerow(first)
        writer.writerows(rows)


def _write_json_lines(file: Path, answers: Sequence[Answer], classes: Sequence[str] | None) -> None:
    with file.open("w", encoding="utf-8") as out:
        for answer in answers:
            out.write(json.dumps(as_object(answer, classes)) + "\n")


def _write_parquet(file: Path, answers: Sequence[Answer], classes: Sequence[str] | None) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = {"image": pa.string(), "error": pa.string(), "class": pa.string(), "probability": pa.float32()}
    rows = list(_rows(answers, classes))
    fields = [(name, kinds.get(name.rpartition("_")[0] or name, pa.int64())) for name in rows[0]]
    pq.write_table(pa.Table.from_pylist(rows, schema=pa.schema(fields)), file)


WRITERS: dict[str, Callable[[Path, Sequence[Answer], Sequence[str] | None], None]] = {
    ".csv": _write_csv,
    ".jsonl": _write_json_lines,
    ".parquet": _write_parquet,
}
