"""A sweep file: W&B's own format, its parameters the settings of a run. Checked before anything is registered."""

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from configs.explain import nearest_key, setting_keys
from configs.layers import UNREADABLE, find_file
from configs.load import Resolved, load_config
from configs.problems import ConfigError, Problem, shown

METHODS = ("grid", "random", "bayes")
KEYS = ("name", "description", "method", "metric", "parameters", "early_terminate", "run_cap")
RUNS_ITSELF = ("program", "command", "controller")
"""What W&B's format has for starting trials. No value of a sweep file becomes a command."""
RANGES = ("int_uniform", "uniform", "q_uniform", "log_uniform_values", "q_log_uniform_values", "inv_log_uniform_values")
SPEC_KEYS = {"value", "values", "probabilities", "min", "max", "q", "distribution"}
NOT_SWEPT = ("name", "run_id", "runs_dir", "data.prepare")
SECTIONS_NOT_SWEPT = ("resume.", "tracking.", "launch.")
WEIGHTS, VALUES = ("", "ema_"), ("top1", "top5", "loss")
METRICS = (*(f"val/{weights}{name}" for weights in WEIGHTS for name in VALUES), "train/loss", "train/top1")
MOST_COMBINATIONS = 256
"""Of a grid, that are checked one by one."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A valid sweep file.

    Attributes:
        document: What W&B is given, its parameters by dotted key.
    """

    document: Mapping[str, Any]

    @property
    def method(self) -> str:
        """How parameters are chosen: grid, random or bayes."""
        return str(self.document["method"])

    @property
    def run_cap(self) -> int | None:
        """Most trials in all; None is no limit."""
        cap: int | None = self.document.get("run_cap")
        return cap

    @property
    def parameters(self) -> Mapping[str, Mapping[str, Any]]:
        """What each setting may be, by dotted key."""
        found: Mapping[str, Mapping[str, Any]] = self.document["parameters"]
        return found


def load_sweep(name: str, files: Sequence[str], overrides: Sequence[str]) -> tuple[Sweep, Resolved]:
    """Read a sweep file and the configuration of its trials, and see that they fit.

    Args:
        name: Path of the sweep file. One that is not found here is looked for among the shipped ones.
        files: Of the configuration.
        overrides: Over them.

    Raises:
        ConfigError: With every problem of both.
    """
    problems: list[Problem] = []
    document = _read(name, problems)
    specs = _flat(document.get("parameters"), problems) if document else {}
    problems += _document_problems(document, specs) if document else []
    origin = Path(name).name
    base: Resolved | None = None
    try:
        base = load_config(files, overrides)
    except ConfigError as error:
        problems += error.problems
    known = {key: spec for key, spec in specs.items() if key in setting_keys()}
    taken = [text.partition("=")[0].removeprefix("--") for text in overrides]
    problems += [
        Problem(key=key, received="both swept and on the command line", accepted="one of the two", origin=origin)
        for key in known
        if key in taken
    ]
    metric = (document.get("metric") or {}).get("name", "") if not problems else ""
    if base is not None and "/ema_" in metric and not base.config.ema.enabled:
        problems.append(Problem(key="metric", received=metric, accepted="another one where ema.enabled is false"))
    if base is not None and not problems:
        problems += _value_problems(document, known, files, overrides, origin)
    if problems or base is None:
        raise ConfigError(problems)
    return Sweep(document={**document, "parameters": specs}), base


def refused_parameters(parameters: Mapping[str, object]) -> list[Problem]:
    """What of a trial, as a server has made it, is no setting that a sweep may choose."""
    keys = [key for key, _ in _leaves(parameters)]
    return [problem for key in keys for problem in _key_problems(key, shown(parameters.get(key)))]


def overrides_of(parameters: Mapping[str, object]) -> list[str]:
    """A trial's parameters as overrides of the configuration; nested ones, as W&B may have them, by dotted key."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in _leaves(parameters)]


def distribution(spec: Mapping[str, Any]) -> str:
    """The name of a parameter's distribution, by W&B's rules where the file does not say."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical"
    whole = isinstance(spec["min"], int) and isinstance(spec["max"], int)
    return str(spec.get("distribution") or ("int_uniform" if whole else "uniform"))


def choices(spec: Mapping[str, Any]) -> Sequence[Any] | None:
    """All values that a parameter takes; None where they are not a list."""
    kind = distribution(spec)
    if kind == "int_uniform":
        return range(spec["min"], spec["max"] + 1)  # of billions, for a seed: never a list
    return {"constant": lambda: [spec["value"]], "categorical": lambda: list(spec["values"])}.get(kind, lambda: None)()


def number_of(values: Sequence[Any]) -> int:
    """How many values there are; `len` knows no range of 2^63 and more."""
    return values.stop - values.start if isinstance(values, range) else len(values)


def _read(name: str, problems: list[Problem]) -> dict[str, Any]:
    path = find_file(name)
    accepted, tree = "a YAML file that exists", None
    if path is not None:
        accepted = "a mapping with method and parameters, in YAML"
        try:
            tree = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")), resolve=False)
        except UNREADABLE as error:
            accepted += f" ({' '.join(str(error).split())})"
    if isinstance(tree, dict) and tree and all(isinstance(key, str) for key in tree):
        return {str(key): value for key, value in tree.items()}
    problems.append(Problem(key="--sweep", received=name, accepted=accepted))
    return {}


def _flat(tree: object, problems: list[Problem], prefix: str = "") -> dict[str, dict[str, Any]]:
    """Parameters by dotted key: W&B's ``{optimizer: {parameters: {lr: …}}}`` too."""
    if not isinstance(tree, dict) or not tree:
        accepted = "a mapping of settings to {values: […]}, {min: …, max: …} or {value: …}"
        problems.append(Problem(key=f"{prefix}parameters", received=shown(tree), accepted=accepted))
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name, spec in tree.items():
        key = f"{prefix}{name}"
        if isinstance(spec, dict) and set(spec) == {"parameters"}:
            found |= _flat(spec["parameters"], problems, f"{key}.")
        elif isinstance(spec, dict):
            found[key] = spec
        else:
            accepted = f"{{value: {shown(spec)}}}, or {{values: […]}}, or {{min: …, max: …}}"
            problems.append(Problem(key=key, received=shown(spec), accepted=accepted))
    return found


def _document_problems(document: Mapping[str, Any], specs: Mapping[str, Mapping[str, Any]]) -> Iterator[Problem]:
    for key in document:
        if key in RUNS_ITSELF:
            accepted = "no such key: effnet runs each trial itself, and nothing of a sweep file as a command"
            yield Problem(key=key, received=shown(document[key]), accepted=accepted)
        elif key not in KEYS:
            accepted = f"one of {', '.join(KEYS)}; W&B's project and entity are tracking.project and tracking.entity"
            yield Problem(key=key, received=shown(document[key]), accepted=accepted)
    method, metric, cap = document.get("method"), document.get("metric"), document.get("run_cap")
    if method not in METHODS:
        yield Problem(key="method", received=shown(method), accepted="grid, random or bayes")
    if cap is not None and (type(cap) is not int or cap < 1):
        yield Problem(key="run_cap", received=shown(cap), accepted="a whole number above 0, or nothing")
    if metric is not None or method == "bayes" or "early_terminate" in document:
        asked = metric if isinstance(metric, dict) else {}
        goal = asked.get("goal", "minimize")
        if asked.get("name") not in METRICS or goal not in ("minimize", "maximize") or set(asked) - {"name", "goal"}:
            accepted = f"name, one of {', '.join(METRICS)}, and goal, minimize or maximize"
            yield Problem(key="metric", received=shown(metric), accepted=accepted)
    for key, spec in specs.items():
        yield from _spec_problems(key, spec, grid=method == "grid")


def _spec_problems(key: str, spec: Mapping[str, Any], *, grid: bool) -> Iterator[Problem]:
    """Of one parameter alone, without a look at what the setting accepts."""
    yield from _key_problems(key, shown(spec))
    fault = _fault(spec, grid=grid)
    if fault is not None:
        yield Problem(key=key, received=shown(spec), accepted=fault)


def _key_problems(key: str, received: str) -> Iterator[Problem]:
    """Of a parameter's name."""
    if key not in setting_keys():
        nearest = nearest_key(key)
        accepted = f"no such setting; did you mean {nearest}?" if nearest else "a setting of configs/schema"
        yield Problem(key=key, received=received, accepted=accepted)
    elif key in NOT_SWEPT or key.startswith(SECTIONS_NOT_SWEPT):
        yield Problem(key=key, received=received, accepted="a setting of training: this one is the sweep's own")


def _fault(spec: Mapping[str, Any], *, grid: bool) -> str | None:
    """What a parameter's choice would have to be, if it is none."""
    forms = [name for name in ("value", "values", "min") if name in spec]
    if set(spec) - SPEC_KEYS or len(forms) != 1:
        return "either value, or values, or min and max (with distribution and q)"
    if forms == ["value"]:
        return None
    if forms == ["values"]:
        if not isinstance(spec["values"], list) or not spec["values"]:
            return "a list of values that is not empty"
        return _fault_of_probabilities(spec)
    low, high, kind = spec["min"], spec.get("max"), spec.get("distribution")
    kinds = {type(low), type(high)}
    if type(spec.get("q", 1)) not in (int, float) or not 0 < spec.get("q", 1) < math.inf:
        return "q, a number above 0"
    if kinds - {int, float} or low >= high or (len(kinds) == 2 and kind is None):
        return "numbers, min below max, both with a decimal point or both without"
    if kind is not None and kind not in RANGES:
        return f"distribution, one of {', '.join(RANGES)}"
    if "log" in str(kind) and low <= 0:
        return "min above 0 for a logarithmic distribution"
    if kind == "int_uniform" and kinds != {int}:
        return "whole numbers for int_uniform"
    if grid and distribution(spec) != "int_uniform":
        return "values, or whole numbers as min and max, for a grid"
    return None


def _fault_of_probabilities(spec: Mapping[str, Any]) -> str | None:
    """As `_fault`, of how often each of some values is drawn."""
    given = spec.get("probabilities", [1] * len(spec["values"]))
    numbers = isinstance(given, list) and all(type(each) in (int, float) and 0 <= each < math.inf for each in given)
    if numbers and len(given) == len(spec["values"]) and any(given):
        return None
    return "probabilities: as many numbers as there are values, none below 0 and not all 0"


def _value_problems(
    document: Mapping[str, Any],
    specs: Mapping[str, Mapping[str, Any]],
    files: Sequence[str],
    overrides: Sequence[str],
    origin: str,
) -> list[Problem]:
    """What the configuration does not accept: of each value alone; of a small grid, of each combination."""
    lists = {key: _tried(spec) for key, spec in specs.items()}
    count = math.prod(map(number_of, (choices(spec) or _ends(spec) for spec in specs.values())))
    whole_grid = document["method"] == "grid" and count <= MOST_COMBINATIONS
    trials = [{key: value} for key, values in lists.items() for value in values]
    if whole_grid:
        trials = [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]
    found: dict[tuple[str, str], Problem] = {}
    for trial in trials:
        try:
            load_config(files, [*overrides, *overrides_of(trial)])
        except ConfigError as error:
            for problem in error.problems:
                # Another parameter may be what makes it fit.
                others = specs.keys() - trial.keys()
                if not others & {problem.key, *problem.beside}:
                    where = origin if problem.key in trial else problem.origin
                    known = Problem(key=problem.key, received=problem.received, accepted=problem.accepted, origin=where)
                    found.setdefault((problem.key, problem.received), known)
    return list(found.values())


def _tried(spec: Mapping[str, Any]) -> Sequence[Any]:
    """The values that are tried on the configuration: all of a list, the ends of a range."""
    known = choices(spec)
    if known is None:
        return _ends(spec)
    return [known[0], known[-1]] if number_of(known) > MOST_COMBINATIONS and isinstance(known, range) else known


def _ends(spec: Mapping[str, Any]) -> list[Any]:
    """Both ends of a range, and, where any number between them may come, one that is not whole."""
    ends = [spec["min"], spec["max"]]
    return ends if distribution(spec).startswith("q_") else [*map(float, ends), (spec["min"] + spec["max"]) / 2.0]


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and key not in setting_keys():
            yield from _leaves(value, f"{key}.")
        else:
            yield key, value
