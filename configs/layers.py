"""What files and the command line say: of each a tree of values, and where each value stands.

OmegaConf reads the YAML: it takes `1e-3` for a number and refuses duplicate keys; PyYAML alone does neither.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException

from configs.explain import setting_keys
from configs.problems import Problem, shown

PACKAGE_DIR = Path(__file__).parent
INTERPOLATION = "a plain value: ${…} is not expanded"
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError)
Tree = dict[str, Any]
Layer = tuple[Tree, dict[str, str]]
"""Values by section and name; the origin of each by dotted key."""


def find_file(name: str, folder: Path = Path()) -> Path | None:
    """A file beside ``folder``, else a shipped one, named with or without ``configs/``."""
    path = Path(name)
    shipped = PACKAGE_DIR.joinpath(*path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    for candidate in (folder / path, shipped):
        with contextlib.suppress(OSError):  # a name too long, a folder that may not be entered
            if candidate.is_file():
                return candidate.resolve()
    return None


def read_file(name: str, problems: list[Problem], including: tuple[Path, ...] = ()) -> list[Layer]:
    """A file's values, after those of its bases.

    Args:
        name: Path of a YAML or JSON file, or name of a shipped one.
        problems: What is wrong with it is added here.
        including: Files that have this one for a base, the outermost first.
    """

    def refuse(accepted: str) -> list[Layer]:
        key, origin = ("base", including[-1].name) if including else ("--config", None)
        problems.append(Problem(key=key, received=name, accepted=accepted, origin=origin))
        return []

    path = find_file(name, including[-1].parent if including else Path())
    if path is None:
        return refuse("a YAML or JSON file that exists")
    if path in including:
        return refuse("files that do not include one another in a circle")
    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
        origins = {key: f"{path.name}:{line}" for key, line in _lines(text)}
    except GrammarParseError:
        return refuse(INTERPOLATION.replace("a plain value", "plain values"))
    except UNREADABLE as error:
        return refuse(f"valid YAML ({_fault(error)})")
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        return refuse("a mapping of sections at the top of the file")
    bases = tree.pop("base", [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        problems.append(
            Problem(
                key="base", received=shown(bases), accepted="the name of a file, or a list of them", origin=path.name
            )
        )
        bases = []
    layers = [layer for base in bases for layer in read_file(base, problems, (*including, path))]
    origins = {_full_key(key, tree.get(key)): line for key, line in origins.items()}
    return [*layers, (_expand_dotted({str(key): value for key, value in tree.items()}), origins)]


def read_override(text: str, problems: list[Problem]) -> Layer:
    """The value that ``dotted.key=value`` sets; what is wrong with it is added to ``problems``."""
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not all(key.split(".")):
        a_file = Path(key).suffix in (".yaml", ".yml", ".json")
        accepted = f"--config {key}" if a_file and not equals else "key=value, such as data.global_batch_size=512"
        problems.append(Problem(key="command line", received=text, accepted=accepted))
        return {}, {}
    try:
        container = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
    except GrammarParseError:
        problems.append(Problem(key=key, received=value, accepted=INTERPOLATION, origin="command line"))
        return {}, {}
    except UNREADABLE as error:
        accepted = f"a value in YAML, text with special characters in quotes: {key}='\"…\"' ({_fault(error)})"
        problems.append(Problem(key=key, received=value, accepted=accepted, origin="command line"))
        return {}, {}
    assert isinstance(container, dict)
    tree = _expand_dotted({key: container["value"]})
    return tree, dict.fromkeys(leaf_keys(tree), "command line")


def merge(under: Tree, over: Tree, prefix: str = "") -> Tree:
    """One tree over another, section by section; ``{}`` for a setting that is itself a mapping drops what it held."""
    merged = dict(under)
    for key, value in over.items():
        path = join_keys(prefix, key)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        drops = value == {} and path in setting_keys()
        merged[key] = merge(merged[key], value, path) if both and not drops else value
    return merged


def leaf_keys(tree: Tree, prefix: str = "") -> list[str]:
    """Dotted keys of all values that are not mappings, or are empty ones."""
    paths = []
    for key, value in tree.items():
        path = join_keys(prefix, key)
        paths += leaf_keys(value, path) if isinstance(value, dict) and value else [path]
    return paths


def join_keys(prefix: str, key: object) -> str:
    """The dotted key of what ``key`` is called in ``prefix``."""
    return f"{prefix}.{key}" if prefix else str(key)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Dotted key and line number of each scalar, sequence and empty mapping."""

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode) and node.value:
            for key, value in node.value:
                yield from walk(value, prefix if key.value == "<<" else join_keys(prefix, key.value))
        elif node is not None:
            yield prefix, node.start_mark.line + 1

    return walk(yaml.compose(text, Loader=yaml.SafeLoader), "")


def _expand_dotted(tree: Tree) -> Tree:
    """``{"optimizer.lr": 1}`` as ``{"optimizer": {"lr": 1}}``: the form of W&B sweeps' argument files."""
    expanded: Tree = {}
    for key, value in tree.items():
        first, *rest = _full_key(key, value).split(".")
        nested: Any = value
        for part in reversed(rest):
            nested = {part: nested}
        expanded = merge(expanded, {first: nested})
    return expanded


def _full_key(key: str, value: object) -> str:
    """The setting that ``resume: X`` is short for."""
    if key != "resume" or not isinstance(value, str):
        return key
    with contextlib.suppress(OSError, ValueError):  # no path at all
        if (Path(value) / "config.yaml").is_file():
            return "model.checkpoint_path"
    return "resume.checkpoint"


def _fault(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None)}"
