"""The table of features by strategy is what the configuration's checks say."""

import pytest

from tests.features import table
from tests.features.catalogue import FEATURES, STRATEGIES
from tests.features.table import ON_CUDA, TRAINED, cell


def test_the_document_has_the_table_that_the_checks_give() -> None:
    assert table.written() == table.render(), "python -m tests.features.table writes it anew"


def test_a_cell_that_changes_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    before = table.render()
    monkeypatch.setitem(STRATEGIES, "ZeRO 1", STRATEGIES["ZeRO 1"] | {"deepspeed.zero_stage": 3})

    assert table.render() != before


def test_cells_are_trained_refused_with_the_reason_or_for_cuda() -> None:
    rows = {feature.name: feature for feature in FEATURES}

    assert cell(rows["averaged weights"], "ZeRO 2") == TRAINED
    assert cell(rows["averaged weights"], "ZeRO 3") == (
        "`ema.enabled` must be false under ZeRO 3, where no rank holds whole weights"
    )
    assert cell(rows["16-mixed"], "ddp") == ON_CUDA
    assert cell(rows["bf16-mixed"], "ddp") == TRAINED
    assert cell(rows["bf16-mixed"], "ZeRO 1") == ON_CUDA


def test_no_row_is_refused_everywhere_or_named_twice() -> None:
    names = [feature.name for feature in FEATURES]

    assert len(set(names)) == len(names)
    assert all(any(cell(row, strategy) in (TRAINED, ON_CUDA) for strategy in STRATEGIES) for row in FEATURES)
