"""Starting a rank without SciPy and Matplotlib, which torchmetrics imports for metrics that no classifier has.

Lightning needs two classes of torchmetrics. Importing those imports all of it, and with it SciPy and Matplotlib where
they are installed (https://github.com/Lightning-AI/torchmetrics/issues/3457): a quarter of a rank's time to its first
line, and seven hundred files for each of its processes to open on a cluster's shared file system. Torchmetrics goes
without what it does not find, so here it does not find them.
"""

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError
from types import ModuleType
from typing import Any

LEFT_OUT = frozenset({"scipy", "matplotlib"})


class _Hidden(MetaPathFinder):
    """Says of the packages that there are none such."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] in LEFT_OUT:
            raise ModuleNotFoundError(f"{fullname} is left out while torchmetrics is imported", name=fullname)
        return None


@contextlib.contextmanager
def _left_out() -> Iterator[None]:
    """Neither the import system nor torchmetrics' own check of what is installed finds the packages."""
    checks: Any = importlib.import_module("lightning_utilities.core.imports")
    version, finder = checks._version, _Hidden()

    def version_of_what_is_found(name: str) -> str:
        if name in LEFT_OUT:
            raise PackageNotFoundError(name)
        return str(version(name))

    sys.meta_path.insert(0, finder)
    checks._version = version_of_what_is_found
    try:
        yield
    finally:
        checks._version = version
        sys.meta_path.remove(finder)


class _Loader(Loader):
    """Loads torchmetrics as its own loader does, with the packages left out for as long as it takes."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        with _left_out():
            self._loader.exec_module(module)


class _Torchmetrics(MetaPathFinder):
    """Stands in line until torchmetrics is imported, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torchmetrics":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


def leave_out_what_no_classifier_needs() -> None:
    """Have torchmetrics imported without them, whoever comes to import it; where it has been, nothing happens."""
    if "torchmetrics" not in sys.modules and not any(isinstance(finder, _Torchmetrics) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Torchmetrics())
