"""Exit codes."""

import pytest

from configs.exit_codes import exit_class


@pytest.mark.parametrize(
    ("code", "word"), [(0, "done"), (85, "interrupted"), (93, "do_not_retry"), (1, "retry"), (137, "retry")]
)
def test_every_exit_code_has_its_class(code: int, word: str) -> None:
    assert exit_class(code) == word
