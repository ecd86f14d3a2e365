"""From YAML files and overrides to a validated Config, remembering where each value came from.

Precedence: schema defaults < `base:` of a file < each file, left to right < `key=value`. OmegaConf reads and merges the
YAML (it takes `1e-3` for a number and refuses duplicate keys; PyYAML alone does neither).
"""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from configs.checks import cross_problems
from configs.explain import schema_problems, setting_keys
from configs.problems import ConfigError, Problem, shown
from configs.schema import Config

PACKAGE_DIR = Path(__file__).parent
INTERPOLATION = "a plain value: ${…} is not expanded"
PLACEHOLDERS = {"data": {"train_shards": "", "val_shards": ""}}
"""What has no default, for checking the rest of a configuration without it."""
UNREAD = ("--config", "base", "command line")
"""Keys of problems with a whole file or argument."""
UNREADABLE = (yaml.YAMLError, OmegaConfBaseException, ValueError, OSError, RecursionError)
Tree = dict[str, Any]
Layer = tuple[Tree, dict[str, str]]
"""Values by section and name; the origin of each by dotted key."""


@dataclass(frozen=True)
class Resolved:
    """A valid configuration and the origin of each value that is not a default (``file.yaml:12``, ``command line``)."""

    config: Config
    origins: Mapping[str, str]


def load_config(files: Sequence[str] = (), overrides: Sequence[str] = ()) -> Resolved:
    """Merge, validate and cross-check.

    Args:
        files: Paths of YAML or JSON files. One that is not found here is looked for among the shipped ones.
        overrides: ``dotted.key=value``, the value in YAML.

    Raises:
        ConfigError: With every problem found, not only the first.
    """
    if not files and not overrides:
        accepted = "a recipe, such as --config configs/experiment/digits.yaml, which brings its own data"
        raise ConfigError([Problem(key="--config", received="nothing", accepted=accepted)])
    problems: list[Problem] = []
    layers: list[Layer] = []
    for name in files:
        layers += _read_file(name, problems)
    layers += [_read_override(text, problems) for text in overrides]

    merged: Tree = {}
    origins: dict[str, str] = {}
    for tree, known in layers:
        merged = _merge(merged, tree)
        origins |= known
    # What could not be read may well have held what is missing or does not fit.
    unread = any(problem.key in UNREAD for problem in problems)
    _refuse_markup(merged, problems)
    config = _validate(merged, problems, unread=unread)
    origins = {key: origins[key] for key in _paths(merged) if key in origins}
    if problems or config is None:
        raise ConfigError([replace(p, origin=p.origin or _origin(p.key, origins)) for p in problems])
    found = {key: _origin(key, origins) for key in leaves(config)}
    return Resolved(config, {key: origin for key, origin in found.items() if origin is not None})


def leaves(config: Config) -> dict[str, Any]:
    """Dotted key to value, in the schema's order; settings that are lists of sections as plain data."""

    def walk(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                yield from walk(value, f"{prefix}{name}.")
            elif isinstance(value, tuple) and any(isinstance(each, BaseModel) for each in value):
                yield prefix + name, [each.model_dump(mode="json") for each in value]
            else:
                yield prefix + name, value

    return dict(walk(config, ""))


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.dump(config.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def find_file(name: str, folder: Path = Path()) -> Path | None:
    """A file beside ``folder``, else a shipped one, named with or without ``configs/``."""
    path = Path(name)
    shipped = PACKAGE_DIR.joinpath(*path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    for candidate in (folder / path, shipped):
        with contextlib.suppress(OSError):  # a name too long, a folder that may not be entered
            if candidate.is_file():
                return candidate.resolve()
    return None


class _Dumper(yaml.SafeDumper):
    """Quotes text that begins like a number, more of which OmegaConf reads as one; escapes control characters."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        quotes = "'" if text[:1] in "+-.0123456789_" else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=quotes if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def _read_file(name: str, problems: list[Problem], including: tuple[Path, ...] = ()) -> list[Layer]:
    """A file's values, after those of its bases."""

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
    layers = [layer for base in bases for layer in _read_file(base, problems, (*including, path))]
    origins = {_full_key(key, tree.get(key)): line for key, line in origins.items()}
    return [*layers, (_expand_dotted({str(key): value for key, value in tree.items()}), origins)]


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Dotted key and line number of each scalar, sequence and empty mapping."""

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode) and node.value:
            for key, value in node.value:
                yield from walk(value, prefix if key.value == "<<" else _join(prefix, key.value))
        elif node is not None:
            yield prefix, node.start_mark.line + 1

    return walk(yaml.compose(text, Loader=yaml.SafeLoader), "")


def _read_override(text: str, problems: list[Problem]) -> Layer:
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
    return tree, dict.fromkeys(_paths(tree), "command line")


def _expand_dotted(tree: Tree) -> Tree:
    """``{"optimizer.lr": 1}`` as ``{"optimizer": {"lr": 1}}``: the form of W&B sweeps' argument files."""
    expanded: Tree = {}
    for key, value in tree.items():
        first, *rest = _full_key(key, value).split(".")
        nested: Any = value
        for part in reversed(rest):
            nested = {part: nested}
        expanded = _merge(expanded, {first: nested})
    return expanded


def _full_key(key: str, value: object) -> str:
    """The setting that ``resume: X`` is short for."""
    if key != "resume" or not isinstance(value, str):
        return key
    with contextlib.suppress(OSError, ValueError):  # no path at all
        if (Path(value) / "config.yaml").is_file():
            return "model.checkpoint_path"
    return "resume.checkpoint"


def _merge(under: Tree, over: Tree, prefix: str = "") -> Tree:
    """Section by section; ``{}`` for a setting that is itself a mapping drops what it held."""
    merged = dict(under)
    for key, value in over.items():
        path = _join(prefix, key)
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        drops = value == {} and path in setting_keys()
        merged[key] = _merge(merged[key], value, path) if both and not drops else value
    return merged


def _refuse_markup(value: object, problems: list[Problem], key: str = "") -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_markup(inner, problems, _join(key, name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_markup(inner, problems, key)
    elif isinstance(value, str) and "${" in value:
        problems.append(Problem(key=key, received=shown(value), accepted=INTERPOLATION))
    elif isinstance(value, bytes):
        problems.append(Problem(key=key, received="binary data", accepted="text or numbers"))


def _validate(tree: Tree, problems: list[Problem], *, unread: bool) -> Config | None:
    """Append every problem; return the Config only if there is none in the values themselves."""
    known = {problem.key for problem in problems}
    tree = {"data": {}, **tree}
    config, found = _parse(tree)
    if found:
        problems += [p for p in found if p.key not in known and not (unread and p.received == "nothing")]
        repaired = _without(tree, {p.key for p in found})
        config, _ = _parse(_merge(PLACEHOLDERS, repaired))
    if config is not None and not unread:
        # Where a value is at fault its default stands in, so combinations that it is part of say nothing.
        faulty = {p.key for p in problems} | {key for p in problems for key in p.beside if key not in _paths(tree)}
        problems += [p for p in cross_problems(config) if not faulty & {p.key, *p.beside}]
    return config


def _parse(tree: Tree) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate_json(json.dumps(tree, default=str)), []
    except ValidationError as error:
        return None, schema_problems(error, tree)


def _without(tree: Tree, keys: set[str], prefix: str = "") -> Tree:
    kept = {key: value for key, value in tree.items() if _join(prefix, key) not in keys}
    return {
        key: _without(value, keys, _join(prefix, key)) if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def _paths(tree: Tree, prefix: str = "") -> list[str]:
    """Dotted keys of all values that are not mappings, or are empty ones."""
    paths = []
    for key, value in tree.items():
        path = _join(prefix, key)
        paths += _paths(value, path) if isinstance(value, dict) and value else [path]
    return paths


def _join(prefix: str, key: object) -> str:
    return f"{prefix}.{key}" if prefix else str(key)


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Where a value came from, or the values in a mapping."""
    found = [origin for known, origin in origins.items() if known == key or known.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(found)) or None


def _fault(error: BaseException) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', None)}"
