"""Loading small configurations, and the problems of faulty ones by key."""

from collections.abc import Sequence

import pytest

from configs.load import load_config
from configs.problems import ConfigError, Problem
from configs.schema import Config

MINIMAL = ("data.train_shards=train.tar", "data.val_shards=val.tar")
"""All that has no default."""


def config_of(*overrides: str, files: Sequence[object] = ()) -> Config:
    return load_config([str(file) for file in files], [*MINIMAL, *overrides]).config


def problems_of(*overrides: str, files: Sequence[object] = (), minimal: bool = True) -> dict[str, Problem]:
    with pytest.raises(ConfigError) as caught:
        load_config([str(file) for file in files], [*(MINIMAL if minimal else ()), *overrides])
    found = {problem.key: problem for problem in caught.value.problems}
    assert len(found) == len(caught.value.problems), "a key comes twice"
    return found
