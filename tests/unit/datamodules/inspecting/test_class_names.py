"""Names of a run's classes, where they are to be had."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_config
from datamodules.inspecting.shards import names_of_classes


def test_where_shards_are_gone_classes_have_no_names_and_that_is_said(
    toy_overrides: Callable[..., list[str]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = load_config([], toy_overrides(data__val_shards=f"{tmp_path}/gone-*.tar")).config.data

    assert names_of_classes(data) is None
    assert "classes have numbers for names" in caplog.text
    assert "gone-*.tar" in caplog.text
