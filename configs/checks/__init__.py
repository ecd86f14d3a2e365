"""Settings that are valid alone but not together. Each problem names the settings that it is about."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from configs.checks.audio import audio_problems
from configs.checks.data import address_problems, batch_problems, decoder_problems, image_problems, repeat_problems
from configs.checks.launch import kubernetes_problems, launch_problems
from configs.checks.modality import modality_problems
from configs.checks.model import model_problems
from configs.checks.operation import checkpoint_problems, fault_problems
from configs.checks.text import text_problems
from configs.checks.training import (
    distillation_problems,
    loss_problems,
    optimizer_problems,
    schedule_problems,
    strategy_problems,
)
from configs.problems import Problem
from configs.progressive import stage_configs, stage_problems
from configs.schema import Config

Check = Callable[[Config], Iterator[Problem]]


def cross_problems(config: Config) -> list[Problem]:
    """All combinations in ``config`` that cannot work or have no effect."""
    return [problem for check in CHECKS for problem in check(config)]


def _progressive(config: Config) -> Iterator[Problem]:
    yield from stage_problems(config)
    without = set(_all_but_progressive(config))
    for number, in_stage in enumerate(stage_configs(config)[:-1]):
        for problem in _all_but_progressive(in_stage):
            if problem not in without:
                received = f"{problem.key} = {problem.received}"
                yield replace(problem, key=f"progressive.stages[{number}]", received=received)


def _all_but_progressive(config: Config) -> Iterator[Problem]:
    for check in CHECKS:
        if check is not _progressive:
            yield from check(config)


CHECKS: tuple[Check, ...] = (
    batch_problems,
    repeat_problems,
    fault_problems,
    address_problems,
    image_problems,
    decoder_problems,
    modality_problems,
    text_problems,
    audio_problems,
    model_problems,
    loss_problems,
    distillation_problems,
    optimizer_problems,
    schedule_problems,
    strategy_problems,
    checkpoint_problems,
    launch_problems,
    kubernetes_problems,
    _progressive,
)
