"""How far a prediction is: a bar on a terminal, lines elsewhere."""

import io
import logging

import pytest
from rich.console import Console

from trainer.predicting import progress
from trainer.predicting.progress import ImageProgress


def test_a_terminal_shows_a_bar_with_images_a_second() -> None:
    output = io.StringIO()
    with ImageProgress(40, Console(file=output, force_terminal=True, width=100)) as shown:
        shown.show(30)

    assert "30/40" in output.getvalue()
    assert "images/s" in output.getvalue()


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="effnet")
    output = io.StringIO()
    with ImageProgress(2000, Console(file=output, width=100)) as shown:
        shown.show(10)
        assert not caplog.messages
        monkeypatch.setattr(progress, "LINE_EVERY_S", 0.0)
        shown.show(1500)

    assert caplog.messages[0].startswith("1,500 of 2,000 images, ")
    assert not output.getvalue().strip()
