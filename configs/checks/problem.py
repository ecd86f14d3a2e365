"""How a problem with a setting is told, given those beside it."""

from configs.problems import Problem, shown
from configs.schema import Config


def problem_with(config: Config, key: str, accepted: str, *beside: str) -> Problem:
    """A problem with ``key``, given the settings ``beside`` it."""
    value: object = config
    for part in key.split("."):
        value = getattr(value, part)
    return Problem(key=key, received=shown(value), accepted=accepted, beside=beside)
