"""Settings that are for other samples than those of `data.modality`."""

from collections.abc import Iterator
from typing import Final

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Augmentation, Config, Data
from configs.schema.section import Modality

IMAGES_ONLY: Final = ("scale", "ratio", "hflip", "vflip", "color_jitter", "rotation", "auto_augment", "aug_splits")
"""Augmentation of images, which other modalities' own takes the place of."""
OFF: Final = (0, None)


SECTIONS: Final[tuple[Modality, ...]] = ("text", "audio")
"""Modalities that have a section of `data` to themselves, which has their name."""


def modality_problems(config: Config) -> Iterator[Problem]:
    """Settings of images beside another modality, and those of another modality beside this one."""
    data, beside = config.data, "data.modality"
    for modality in SECTIONS:
        section = getattr(data, modality)
        for name, field in type(section).model_fields.items():
            if data.modality != modality and getattr(section, name) != field.default:
                accepted = f"its default, {shown(field.default)}, or data.modality = {modality}"
                yield problem_with(config, f"data.{modality}.{name}", accepted, beside)
    if data.modality == "image":
        return
    this = f"beside data.modality = {data.modality}"
    if config.model.in_chans != 1:
        accepted = f"1 {this}, whose pictures are grey"
        yield problem_with(config, "model.in_chans", accepted, beside)
    for name in IMAGES_ONLY:
        default, value = Augmentation.model_fields[name].default, getattr(data.augmentation, name)
        if value != default and value not in OFF:
            accepted = f"its default, {shown(default)}, {this}: it is for images"
            yield problem_with(config, f"data.augmentation.{name}", accepted, beside)
    for name in ("interpolation", "crop_pct"):
        default = Data.model_fields[name].default
        if getattr(data, name) != default:
            accepted = f"its default, {shown(default)}, {this}: it is for images"
            yield problem_with(config, f"data.{name}", accepted, beside)
    for number, stage in enumerate(config.progressive.stages):
        if stage.image_size is not None:
            key, received = f"progressive.stages[{number}].image_size", shown(stage.image_size)
            yield Problem(key=key, received=received, accepted=f"null {this}: it is for images", beside=(beside,))
