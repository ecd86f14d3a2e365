"""What settings are made of: sections, and values that several of them have."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]

NonNegativeInt = Annotated[int, Field(ge=0)]

PositiveFloat = Annotated[float, Field(gt=0)]

NonNegativeFloat = Annotated[float, Field(ge=0)]

Fraction = Annotated[float, Field(ge=0, le=1)]

ValidationMetric = Literal["val/top1", "val/top5", "val/loss", "val/ema_top1", "val/ema_top5", "val/ema_loss"]

AugmentationPolicy = Annotated[
    str,
    Field(
        pattern=r"^(rand(-([mn]\d+|mmax\d+|mstd\d+(\.\d+)?|inc[01]|p(0?\.\d+|[01](\.0+)?)|t(weights|3aw?)))*"
        r"|augmix(-([mwd]\d+|b[01]|a\d+(\.\d+)?|mstd\d+(\.\d+)?))*|(originalr?|v0r?|3a)(-mstd\d+(\.\d+)?)?|trivial)$"
    ),
]
"""timm's string of an augmentation policy, or `trivial`."""

Modality = Literal["image", "text", "audio"]
"""What the samples of shards are."""

RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]


class Section(BaseModel):
    """A group of settings: frozen; unknown keys and infinite numbers refused, ints and bools not converted."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
