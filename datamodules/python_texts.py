"""A real data set of text that comes with Python: what kind of text a passage is, out of the standard library's files.

Four kinds: ``code`` without comments and docstrings; ``comment`` and ``docstring`` without their marks, those of a file
one after the other; and ``manual``, the topics of Python's ``help``. The splits have no file or topic in common, and no
line of some length. What there is depends on the version of Python.
"""

import ast
import inspect
import io
import sysconfig
import tokenize
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from datamodules.making.shards import Image, write_classes, write_split
from datamodules.streaming.order import permutation

KINDS: Final = ("code", "comment", "docstring", "manual")
TRAIN_SHARDS, VALIDATION_SHARDS = 16, 4
VALIDATION_SHARE = 0.2
LONGEST, SHORTEST = 640, 320
"""Characters of a passage, which is made of whole lines where these are no longer."""
MOST: Final = {"validation": 120, "train": 600}
"""Passages of a kind in a split: as many of each, where there are so many."""
MOST_OF_A_FILE = 6
"""Passages of a kind, so that no file is a large part of a split."""
LONG_LINE = 40
"""Characters of a line that is in one split alone: licences and topics of the manual are repeated elsewhere."""
SEED = 0
_ELSEWHERE: Final = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data"}
"""Folders that are no part of the library, or not everywhere, or hold tables."""


def build(out_dir: Path, progress: Callable[[int], None] | None = None) -> None:
    """Write 16 training and 4 validation shards."""
    files = _library()
    cut = round(len(files) * VALIDATION_SHARE)
    found = {"validation": _gathered(files[:cut], "validation"), "train": _gathered(files[cut:], "train")}
    topics = _manual()
    cut = round(len(topics) * VALIDATION_SHARE)
    for split, part in (("validation", topics[:cut]), ("train", topics[cut:])):
        found[split]["manual"] = list(dict.fromkeys(passage for text in part for passage in passages(text)))
    known = {line for kind in KINDS for passage in found["validation"][kind] for line in _long_lines(passage)}
    write_classes(out_dir, KINDS)
    for split, num_shards in (("validation", VALIDATION_SHARDS), ("train", TRAIN_SHARDS)):
        samples = []
        for label, kind in enumerate(KINDS):
            own = found[split][kind]
            if split == "train":
                own = [passage for passage in own if known.isdisjoint(_long_lines(passage))]
            chosen = [own[int(i)] for i in permutation(len(own), SEED, label)[: MOST[split]]]
            samples += [
                Image(f"{kind}_{number:04d}", "txt", label, partial(str.encode, passage))
                for number, passage in enumerate(chosen)
            ]
        write_split(
            samples, out_dir, name="python-texts", split=split, num_shards=num_shards, seed=SEED, progress=progress
        )


def _gathered(files: Sequence[Path], split: str) -> dict[str, list[str]]:
    """Passages of all kinds out of files, until there are enough of each, with some to spare."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in KINDS if kind != "manual"}
    for number, path in enumerate(files):
        if all(len(passages) >= 1.2 * MOST[split] for passages in found.values()):
            break
        for kind, text in kinds_of(path.read_text(encoding="utf-8", errors="replace")).items():
            of_file = list(passages(text))
            chosen = permutation(len(of_file), SEED, number)[:MOST_OF_A_FILE].tolist() if of_file else []
            found[kind] |= dict.fromkeys(of_file[i] for i in chosen)
    return {kind: list(passages) for kind, passages in found.items()}


def _long_lines(passage: str) -> set[str]:
    return {line.strip() for line in passage.splitlines() if len(line.strip()) >= LONG_LINE}


def passages(text: str) -> Iterator[str]:
    """A text in parts of up to ``LONGEST`` characters that end with a line, but for what is too short in the end."""
    part = ""
    for line in text.splitlines():
        pieces = [line[at : at + LONGEST - 1] for at in range(0, len(line), LONGEST - 1)] or [""]
        for piece in pieces:
            if len(part) + len(piece) >= LONGEST:
                yield part
                part = ""
            part += f"{piece}\n"
    if len(part) >= SHORTEST:
        yield part


def kinds_of(source: str) -> dict[str, str]:
    """What of a Python file is code, comments that have lines of their own, and docstrings."""
    lines, comments = source.splitlines(), []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            if not lines[row - 1][:column].strip():
                comments.append(token.string.lstrip("#").removeprefix(" ").rstrip())
            lines[row - 1] = lines[row - 1][:column]
    docstrings = _docstrings(source)
    for node in docstrings:
        first, last = node.lineno - 1, node.end_lineno or node.lineno
        lines[first:last] = [""] * (last - first)
    return {
        "code": "\n".join(line.rstrip() for line in lines if line.strip()),
        "comment": "\n".join(line for line in comments if any(character.isalnum() for character in line)),
        "docstring": "\n\n".join(inspect.cleandoc(str(node.value)) for node in docstrings),
    }


def _docstrings(source: str) -> list[ast.Constant]:
    """The nodes of a file's docstrings, in the order of its lines."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                found.append(first.value)
    return sorted((node for node in found if isinstance(node.value, str)), key=lambda node: node.lineno)


def _library() -> list[Path]:
    """Files of the standard library, shuffled."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path for path in sorted(root.rglob("*.py")) if _ELSEWHERE.isdisjoint(path.relative_to(root).parts)]
    return [paths[int(i)] for i in permutation(len(paths), SEED)]


def _manual() -> list[str]:
    """Topics of the manual, shuffled."""
    from pydoc_data.topics import topics

    names = sorted(topics)
    return [topics[names[int(i)]] for i in permutation(len(names), SEED)]
