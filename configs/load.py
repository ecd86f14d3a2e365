"""From YAML files and overrides to a validated Config, remembering where each value came from.

Precedence: schema defaults < `base:` of a file < each file, left to right < `key=value`. OmegaConf reads and merges the
YAML (it takes `1e-3` for a number and refuses duplicate keys; PyYAML alone does neither).
"""

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import BaseModel, ValidationError

from configs.checks import cross_problems
from configs.problems import ConfigError, Problem
from configs.schema import Config

PACKAGE_DIR = Path(__file__).parent
Tree = dict[str, Any]


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
    problems: list[Problem] = []
    layers: list[tuple[Tree, dict[str, str]]] = []
    for name in files:
        layers += _read_file(name, problems, seen=())
    layers += [_read_override(text, problems) for text in overrides]

    merged: Tree = {}
    origins: dict[str, str] = {}
    for tree, lines in layers:
        merged = _merge(merged, tree)
        origins.update(lines)
    config = _validate(merged, problems)
    if problems or config is None:
        raise ConfigError([_with_origin(problem, origins) for problem in _unique(problems)])
    return Resolved(config, {key: origins[key] for key in leaves(config) if key in origins})


def leaves(config: Config) -> dict[str, Any]:
    """Dotted key to value, in the schema's order."""

    def walk(model: BaseModel, prefix: str) -> Iterator[tuple[str, Any]]:
        for name in type(model).model_fields:
            value = getattr(model, name)
            if isinstance(value, BaseModel):
                yield from walk(value, f"{prefix}{name}.")
            else:
                yield prefix + name, value

    return dict(walk(config, ""))


def dump_yaml(config: Config) -> str:
    """The configuration as YAML that `load_config` reads back to an equal one."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_file(name: str, problems: list[Problem], seen: tuple[Path, ...]) -> list[tuple[Tree, dict[str, str]]]:
    path = _find(name)
    if path is None:
        problems.append(Problem(key="--config", received=name, accepted="a YAML or JSON file that exists"))
        return []
    if path in seen:
        problems.append(
            Problem(key="base", received=name, accepted="files that do not include one another in a circle")
        )
        return []
    try:
        text = path.read_text(encoding="utf-8")
        tree = OmegaConf.to_container(OmegaConf.create(text), resolve=False) if text.strip() else {}
        lines = {key: f"{path.name}:{line}" for key, line in _lines(text)}
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError, ValueError) as error:
        problems.append(Problem(key="--config", received=name, accepted=f"valid YAML ({_one_line(error)})"))
        return []
    if not isinstance(tree, dict) or not all(isinstance(key, str) for key in tree):
        problems.append(Problem(key="--config", received=name, accepted="a mapping of sections at the top of the file"))
        return []
    tree = _expand_dotted({str(key): value for key, value in tree.items()})
    bases = tree.pop("base", [])
    layers = []
    for base in [bases] if isinstance(bases, str) else bases:
        layers += _read_file(str(path.parent / base), problems, (*seen, path))
    _refuse_interpolation(tree, problems)
    return [*layers, (tree, lines)]


def _find(name: str) -> Path | None:
    path = Path(name)
    shipped = PACKAGE_DIR.joinpath(*path.parts[1:] if path.parts[:1] == ("configs",) else path.parts)
    return next((p.resolve() for p in (path, shipped) if p.is_file()), None)


def _lines(text: str) -> Iterator[tuple[str, int]]:
    """Dotted key and line number of each scalar or sequence."""

    def walk(node: yaml.Node | None, prefix: str) -> Iterator[tuple[str, int]]:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                yield from walk(value, f"{prefix}.{key.value}" if prefix else str(key.value))
        elif node is not None:
            yield prefix, node.start_mark.line + 1

    return walk(yaml.compose(text, Loader=yaml.SafeLoader), "")


def _read_override(text: str, problems: list[Problem]) -> tuple[Tree, dict[str, str]]:
    key, equals, value = text.partition("=")
    key = key.strip().removeprefix("--")
    if not equals or not key:
        problems.append(
            Problem(key="command line", received=text, accepted="key=value, such as data.global_batch_size=512")
        )
        return {}, {}
    try:
        container = OmegaConf.to_container(OmegaConf.create(f"value: {value}"), resolve=False)
        assert isinstance(container, dict)
        parsed = container["value"]
    except (yaml.YAMLError, OmegaConfBaseException, ValueError) as error:
        problems.append(Problem(key=key, received=value, accepted=f"a YAML value ({_one_line(error)})"))
        return {}, {}
    tree = _expand_dotted({key: parsed})
    _refuse_interpolation(tree, problems)
    return tree, {key: "command line"}


def _expand_dotted(tree: Tree) -> Tree:
    """``{"optimizer.lr": 1}`` as ``{"optimizer": {"lr": 1}}``: the form of W&B sweeps' argument files."""
    expanded: Tree = {}
    for key, value in tree.items():
        first, *rest = str(key).split(".")
        nested: Any = value
        for part in reversed(rest):
            nested = {part: nested}
        expanded = _merge(expanded, {first: nested})
    return expanded


def _merge(under: Tree, over: Tree) -> Tree:
    merged = dict(under)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _refuse_interpolation(tree: Tree, problems: list[Problem], prefix: str = "") -> None:
    for key, value in tree.items():
        if isinstance(value, dict):
            _refuse_interpolation(value, problems, f"{prefix}{key}.")
        elif isinstance(value, str) and "${" in value:
            problems.append(Problem(key=prefix + key, received=value, accepted="a plain value: ${…} is not expanded"))


def _validate(tree: Tree, problems: list[Problem]) -> Config | None:
    """Append every problem; return the Config only if there is none in the values themselves."""
    try:
        config = Config.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        found = list(_schema_problems(error))
        problems += found
        # The cross-checks run on what is left when the faulty keys fall back to their defaults.
        repaired = _without(tree, {problem.key for problem in found})
        try:
            rest = Config.model_validate_json(json.dumps(repaired))
        except ValidationError:
            return None
        faulty = {problem.key for problem in found}
        problems += [problem for problem in cross_problems(rest) if problem.key not in faulty]
        return None
    except (TypeError, ValueError) as error:
        problems.append(
            Problem(key="configuration", received="a value JSON has no form for", accepted=_one_line(error))
        )
        return None
    problems += cross_problems(config)
    return config


def _schema_problems(error: ValidationError) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        key, known = _schema_key(item["loc"])
        received = json.dumps(item["input"], default=str) if item["type"] != "missing" else "nothing"
        if len(received) > 200:
            received = received[:197] + "..."
        if item["type"] == "extra_forbidden":
            yield Problem(key=key, received=received, accepted=_did_you_mean(key, known))
        elif item["type"] == "missing":
            yield Problem(key=key, received=received, accepted="a value: it has no default")
        else:
            yield Problem(key=key, received=received, accepted=_accepted(item["msg"]))


def _accepted(message: str) -> str:
    message = message.removeprefix("Input should be ").replace("valid integer", "whole number")
    return message[:1].lower() + message[1:]


def _schema_key(loc: tuple[int | str, ...]) -> tuple[str, list[str]]:
    """Dotted key of an error's location without pydantic's names of union members; the keys known at that level."""
    model: type[BaseModel] | None = Config
    parts: list[str] = []
    for part in map(str, loc):
        if model is None:
            break
        parts.append(part)
        field = model.model_fields.get(part)
        if field is None:
            break
        annotation = field.annotation
        model = annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return ".".join(parts), list(model.model_fields) if model else []


def _did_you_mean(key: str, siblings: list[str]) -> str:
    section, _, last = key.rpartition(".")
    close = difflib.get_close_matches(last, siblings, n=1)
    if close:
        return f"no such key; did you mean {section + '.' if section else ''}{close[0]}?"
    every = _all_keys()
    elsewhere = [name for name in every if name.rpartition(".")[2] == last]
    close = elsewhere[:1] or difflib.get_close_matches(key, every, n=1)
    return f"no such key; did you mean {close[0]}?" if close else f"one of {', '.join(siblings)}"


def _all_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    keys = []
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            keys += _all_keys(annotation, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def _without(tree: Tree, keys: set[str], prefix: str = "") -> Tree:
    return {
        key: _without(value, keys, f"{prefix}{key}.") if isinstance(value, dict) else value
        for key, value in tree.items()
        if prefix + key not in keys
    }


def _unique(problems: list[Problem]) -> list[Problem]:
    """One problem a key: a union's members each report their own, and are joined."""
    joined: dict[tuple[str, str], Problem] = {}
    for problem in problems:
        known = joined.get((problem.key, problem.received))
        if known is not None and problem.accepted != known.accepted:
            problem = Problem(
                key=known.key, received=known.received, accepted=f"{known.accepted}, or {problem.accepted}"
            )
        joined[problem.key, problem.received] = problem
    return list(joined.values())


def _with_origin(problem: Problem, origins: Mapping[str, str]) -> Problem:
    origin = origins.get(problem.key)
    return Problem(key=problem.key, received=problem.received, accepted=problem.accepted, origin=origin)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
