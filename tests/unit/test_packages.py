"""What is installed is what there is."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_package_is_installed() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    roots = [ROOT / name for name in ("configs", "datamodules", "trainer", "launch")]
    there = [".".join(file.parent.relative_to(ROOT).parts) for root in roots for file in root.rglob("__init__.py")]
    assert sorted(settings["tool"]["setuptools"]["packages"]) == sorted(there)
