"""From pydantic's errors to problems that a user understands: the key, what it accepts, the nearest key that exists."""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from configs.problems import Problem, shown
from configs.schema import Config

NOUNS = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text", NoneType: "null"}
BOUNDS = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}", "pattern": "matching {}"}


def schema_problems(error: ValidationError, tree: Mapping[str, Any]) -> list[Problem]:
    """One problem for each setting at fault, in the schema's order.

    Args:
        error: From validating ``tree`` as a `Config`.
        tree: Values by section and name, as received.
    """
    problems: dict[str, Problem] = {}
    for item in error.errors(include_url=False):
        if item["type"] == "json_invalid":  # half a surrogate pair: bytes of the command line, or an escape in YAML
            return [Problem(key="configuration", received="text that is not Unicode", accepted="text in UTF-8")]
        key, annotation, siblings = _locate(item["loc"])
        if key in problems:  # each member of a union reports its own error
            continue
        if item["type"] == "missing":
            accepted = f"{describe(annotation)}: it has no default"
            problems[key] = Problem(key=key, received="nothing", accepted=accepted)
        elif item["type"] == "extra_forbidden":
            nearest = _nearest(key, siblings)
            accepted = f"no such key; did you mean {nearest}?" if nearest else f"one of {', '.join(siblings)}"
            beside = (nearest,) if nearest else ()
            problems[key] = Problem(key=key, received=shown(item["input"]), accepted=accepted, beside=beside)
        else:
            value = _value(tree, key)
            accepted = describe(annotation)
            takes = list(_members(annotation))
            if type(value) in (int, float) and str in takes and float not in takes:
                accepted += f"; text that looks like a number goes in quotes: {key}='\"…\"'"
            problems[key] = Problem(key=key, received=shown(value), accepted=accepted)
    return list(problems.values())


def setting_keys(model: type[BaseModel] = Config, prefix: str = "") -> list[str]:
    """Dotted keys of all settings, in the schema's order."""
    keys = []
    for name, field in model.model_fields.items():
        section = _section(field.annotation)
        keys += setting_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys


def describe(annotation: Any) -> str:
    """What a type accepts, in words: "a whole number above 0, or auto"."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return f"{describe(arguments[0])}{_bounds(arguments[1:])}"
    if origin in (Union, UnionType):
        return ", or ".join(describe(member) for member in arguments)
    if origin is Literal:
        *most, last = map(str, arguments)
        return f"{', '.join(most)} or {last}" if most else last
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {describe(arguments[0])}"
    if origin is dict:
        return "a mapping of names to values"
    section = _section(annotation)
    if section:
        return f"a section of the keys {', '.join(section.model_fields)}"
    return NOUNS[annotation]


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _bounds(metadata: Sequence[Any]) -> str:
    flat = [part for item in metadata for part in (item.metadata if isinstance(item, FieldInfo) else [item])]
    found = [text.format(getattr(part, name)) for part in flat for name, text in BOUNDS.items() if hasattr(part, name)]
    return f" {' and '.join(found)}" if found else ""


def _locate(loc: Sequence[int | str]) -> tuple[str, Any, list[str]]:
    """Dotted key of an error's location without list positions and pydantic's names of union members.

    Returns:
        The key, the type of its value (None for an unknown one), the keys known beside it.
    """
    section: type[BaseModel] = Config
    parts: list[str] = []
    for depth, part in enumerate(map(str, loc)):
        parts.append(part)
        field = section.model_fields.get(part)
        if field is None:
            return ".".join(parts), None, list(section.model_fields)
        inner = _section(field.annotation)
        if inner is None or depth == len(loc) - 1:
            annotation: Any = field.annotation
            if get_origin(annotation) is dict and depth < len(loc) - 1:
                parts.append(str(loc[depth + 1]))
                annotation = get_args(annotation)[1]
            elif field.metadata:
                annotation = Annotated[annotation, *field.metadata]
            return ".".join(parts), annotation, list(section.model_fields)
        section = inner
    return "configuration", Config, []


def _value(tree: Mapping[str, Any], key: str) -> object:
    value: Any = tree
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _members(annotation: Any) -> Iterator[Any]:
    """The plain types that a type is made of."""
    if get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from _members(member)
    else:
        yield get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def nearest_key(key: str) -> str | None:
    """A setting whose name is like that of one that does not exist."""
    section = key.rpartition(".")[0]
    return _nearest(key, [name.rpartition(".")[2] for name in setting_keys() if name.rpartition(".")[0] == section])


def _nearest(key: str, siblings: Sequence[str]) -> str | None:
    """A key that exists: of a similar name in the same section, of the same name in another, similar as a whole."""
    section, _, last = key.rpartition(".")
    for name in difflib.get_close_matches(last, siblings, n=1):
        return f"{section}.{name}" if section else name
    every = setting_keys()
    elsewhere = [name for name in every if name.rpartition(".")[2] == last]
    return next(iter(elsewhere or difflib.get_close_matches(key, every, n=1)), None)
