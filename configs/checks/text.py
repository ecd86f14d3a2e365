"""Settings of drawn text that are valid alone and not together."""

from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Config, Text
from configs.schema.text import SMALLEST_CELL


def text_problems(config: Config) -> Iterator[Problem]:
    """Letters too small to be told apart, and randomness that is not there."""
    data, text = config.data, config.data.text
    if data.modality != "text":
        return
    sides = [(name, getattr(data, name)) for name in ("image_size", "eval_image_size")]
    for key, side in [(f"data.{name}", side) for name, side in sides if side is not None]:
        for name in ("rows", "columns"):
            count = getattr(text, name)
            if count is not None and side // count < SMALLEST_CELL:
                accepted = f"at most {side // SMALLEST_CELL}: {SMALLEST_CELL} of {key} = {side} pixels for each"
                yield problem_with(config, f"data.text.{name}", accepted, key)
    low, high = text.random_scale
    if low > high:
        yield problem_with(config, "data.text.random_scale", "a lower and an upper bound, in that order")
    for name in ("random_scale", "random_shift"):
        default = Text.model_fields[name].default
        if not data.augmentation.enabled and getattr(text, name) != default:
            accepted = f"its default, {shown(default)}, beside data.augmentation.enabled = false"
            yield problem_with(config, f"data.text.{name}", accepted, "data.augmentation.enabled")
