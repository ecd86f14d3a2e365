"""How far all ranks are with their images: a bar on a terminal, a line now and then elsewhere."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trainer.logs import logger

LINE_EVERY_S = 30.0


class ImageProgress:
    """Shows images done and images a second."""

    def __init__(self, total: int, console: Console) -> None:
        self._total = total
        self._terminal = console.is_terminal
        columns = (TextColumn("predict"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"))
        self._bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not self._terminal)
        self._task = self._bar.add_task("predict", total=total, speed="")
        self._began = self._said = time.monotonic()

    def __enter__(self) -> "ImageProgress":
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def show(self, done: int) -> None:
        """So many of all ranks' images are done."""
        now = time.monotonic()
        speed = f"{done / max(now - self._began, 1e-9):,.0f} images/s"
        self._bar.update(self._task, completed=done, speed=speed)
        if not self._terminal and now - self._said >= LINE_EVERY_S:
            self._said = now
            logger.info("%s of %s images, %s", f"{done:,}", f"{self._total:,}", speed)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._began
