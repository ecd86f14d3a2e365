"""Grid and random search without a server: which parameters the n-th trial of a sweep has, a pure function."""

import math
import random
from collections.abc import Mapping
from typing import Any

from configs.problems import ConfigError, Problem, shown
from configs.sweep_file import Sweep, choices, distribution, number_of


def number_of_trials(sweep: Sweep) -> int:
    """Trials in all.

    Raises:
        ConfigError: If this machine alone cannot search so, or without an end.
    """
    if sweep.method == "bayes" or "early_terminate" in sweep.document:
        key = "method" if sweep.method == "bayes" else "early_terminate"
        accepted = "grid or random without early_terminate, or tracking.mode=online: W&B's server does this"
        raise ConfigError([Problem(key=key, received=shown(sweep.document[key]), accepted=accepted)])
    if sweep.method == "random":
        if sweep.run_cap is None:
            accepted = "a whole number: how many trials there are in all, for a random search without a server"
            raise ConfigError([Problem(key="run_cap", received="nothing", accepted=accepted)])
        return sweep.run_cap
    count = math.prod(number_of(choices(spec) or ()) for spec in sweep.parameters.values())
    return min(count, sweep.run_cap or count)


def parameters_of(sweep: Sweep, index: int, *, seed: str) -> dict[str, Any]:
    """Parameters of one trial: the same for the same arguments, whoever asks.

    Args:
        sweep: With method grid or random.
        index: The trial's number, from 0.
        seed: Of a random search.
    """
    if sweep.method == "grid":
        found = {}
        for key, spec in reversed(list(sweep.parameters.items())):  # the last one changes first
            values = choices(spec) or ()
            index, place = divmod(index, number_of(values))
            found[key] = values[place]
        return {key: found[key] for key in sweep.parameters}
    # By the trial's own seed, so that agents need not agree on a state. Text, because hash() differs between processes.
    generator = random.Random(f"{seed}:{index}")
    return {key: _drawn(spec, generator) for key, spec in sweep.parameters.items()}


def _drawn(spec: Mapping[str, Any], generator: random.Random) -> Any:
    """A value by W&B's definition of its distribution."""
    kind = distribution(spec)
    if kind == "constant":
        return spec["value"]
    if kind == "categorical":
        return generator.choices(spec["values"], weights=spec.get("probabilities"))[0]
    low, high = spec["min"], spec["max"]
    if kind == "int_uniform":
        return generator.randint(low, high)
    value = (
        math.exp(generator.uniform(math.log(low), math.log(high))) if "log" in kind else generator.uniform(low, high)
    )
    value = min(max(value, low), high)  # exp(log(x)) may be a little beyond x
    if kind.startswith("q_"):
        step = spec.get("q", 1)
        value = round(value / step) * step
    return value
