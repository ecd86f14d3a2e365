"""The stages of progressive learning: the whole configuration of each, and what makes no sense in them."""

from collections.abc import Iterator
from typing import Any, Final

from configs.problems import Problem, shown
from configs.schema import Config, Section

SETTINGS: Final = {
    "image_size": "data.image_size",
    "auto_augment": "data.augmentation.auto_augment",
    "mixup_alpha": "loss.mixup_alpha",
    "cutmix_alpha": "loss.cutmix_alpha",
    "drop_rate": "model.drop_rate",
}
"""What a stage may have instead of the setting of the whole run."""


def stage_configs(config: Config) -> tuple[Config, ...]:
    """The configuration of each stage of `progressive.stages`, and last that of the epochs after them: ``config``."""
    return (*(_in_stage(config, number) for number in range(len(config.progressive.stages))), config)


def stage_problems(config: Config) -> Iterator[Problem]:
    """Stages that cannot be, or that change nothing."""
    before = 0
    for number, stage in enumerate(config.progressive.stages):
        key = f"progressive.stages[{number}]"
        received = f"until_epoch: {stage.until_epoch}"
        if stage.until_epoch <= before:
            accepted = f"more than {before}, where the stage before it ends: stages do not overlap"
            yield Problem(key=key, received=received, accepted=accepted)
        elif stage.until_epoch > config.trainer.max_epochs:
            accepted = f"at most trainer.max_epochs = {config.trainer.max_epochs}"
            yield Problem(key=key, received=received, accepted=accepted, beside=("trainer.max_epochs",))
        before = max(before, stage.until_epoch)
        given = {name: getattr(stage, name) for name in SETTINGS if getattr(stage, name) is not None}
        if not given:
            yield Problem(key=key, received="until_epoch alone", accepted=f"what differs in it: {', '.join(SETTINGS)}")
        for name, setting in SETTINGS.items():
            if name in given and given[name] == _value(config, setting):
                received, accepted = (
                    f"{name}: {shown(given[name])}",
                    f"another value than {setting} has: it holds anyway",
                )
                yield Problem(key=key, received=received, accepted=accepted, beside=(setting,))


def _in_stage(config: Config, number: int) -> Config:
    stage = config.progressive.stages[number]
    found = config
    for name, setting in SETTINGS.items():
        value = getattr(stage, name)
        if value is not None:
            found = _replaced(found, setting.split("."), value)
    return found


def _replaced(section: Section, path: list[str], value: object) -> Any:
    first, *rest = path
    return section.model_copy(update={first: _replaced(getattr(section, first), rest, value) if rest else value})


def _value(config: Config, setting: str) -> object:
    value: object = config
    for part in setting.split("."):
        value = getattr(value, part)
    return value
