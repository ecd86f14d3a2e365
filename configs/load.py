"""From YAML files and overrides to a validated Config, remembering where each value came from.

Precedence: schema defaults < `base:` of a file < each file, left to right < `key=value`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from configs.checks import cross_problems
from configs.explain import schema_problems
from configs.layers import INTERPOLATION, Layer, Tree, join_keys, leaf_keys, merge, read_file, read_override
from configs.problems import ConfigError, Problem, shown
from configs.schema import Config

PLACEHOLDERS = {"data": {"train_shards": "", "val_shards": ""}}
"""What has no default, for checking the rest of a configuration without it."""
UNREAD = ("--config", "base", "command line")
"""Keys of problems with a whole file or argument."""


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
        layers += read_file(name, problems)
    layers += [read_override(text, problems) for text in overrides]

    merged: Tree = {}
    origins: dict[str, str] = {}
    for tree, known in layers:
        merged = merge(merged, tree)
        origins |= known
    # What could not be read may well have held what is missing or does not fit.
    unread = any(problem.key in UNREAD for problem in problems)
    _refuse_markup(merged, problems)
    config = _validate(merged, problems, unread=unread)
    origins = {key: origins[key] for key in leaf_keys(merged) if key in origins}
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


class _Dumper(yaml.SafeDumper):
    """Quotes text that begins like a number, more of which OmegaConf reads as one; escapes control characters."""

    def represent_text(self, text: str) -> yaml.ScalarNode:
        quotes = "'" if text[:1] in "+-.0123456789_" else None
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=quotes if text.isprintable() else '"')


_Dumper.add_representer(str, _Dumper.represent_text)


def _refuse_markup(value: object, problems: list[Problem], key: str = "") -> None:
    if isinstance(value, dict):
        for name, inner in value.items():
            _refuse_markup(inner, problems, join_keys(key, name))
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
        config, _ = _parse(merge(PLACEHOLDERS, repaired))
    if config is not None and not unread:
        # Where a value is at fault its default stands in, so combinations that it is part of say nothing.
        faulty = {p.key for p in problems} | {key for p in problems for key in p.beside if key not in leaf_keys(tree)}
        problems += [p for p in cross_problems(config) if not faulty & {p.key, *p.beside}]
    return config


def _parse(tree: Tree) -> tuple[Config | None, list[Problem]]:
    try:
        return Config.model_validate_json(json.dumps(tree, default=str)), []
    except ValidationError as error:
        return None, schema_problems(error, tree)


def _without(tree: Tree, keys: set[str], prefix: str = "") -> Tree:
    kept = {key: value for key, value in tree.items() if join_keys(prefix, key) not in keys}
    return {
        key: _without(value, keys, join_keys(prefix, key)) if isinstance(value, dict) else value
        for key, value in kept.items()
    }


def _origin(key: str, origins: Mapping[str, str]) -> str | None:
    """Where a value came from, or the values in a mapping."""
    found = [origin for known, origin in origins.items() if known == key or known.startswith(f"{key}.")]
    return ", ".join(dict.fromkeys(found)) or None
