"""The README says what is there."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FILES = [
    file.relative_to(ROOT)
    for package in ("configs", "datamodules", "trainer", "launch", "benchmarks")
    for file in sorted((ROOT / package).rglob("*.py"))
    if file.name != "__init__.py"
]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_the_readme_says_of_each_file_what_its_first_sentence_says(file: Path) -> None:
    docstring = ast.get_docstring(ast.parse((ROOT / file).read_text(encoding="utf-8"))) or ""
    purpose = " ".join(docstring.partition("\n\n")[0].split())

    assert f"| `{file}` | {purpose} |" in README


def test_the_readme_names_no_file_that_is_gone() -> None:
    named = [
        line.split("`")[1]
        for line in README.splitlines()
        if line.startswith("| `") and line.split("`")[1][-3:] == ".py"
    ]

    assert [Path(name) for name in named] == FILES
