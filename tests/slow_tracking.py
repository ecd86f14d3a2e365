"""Training whose W&B takes some seconds to finish on rank 0, through the command line: see tests/stand_in.py.

The JSON file SPEC holds these ``seconds``, and the path of a file that is made when W&B has ``finished``.
"""

import time
from pathlib import Path
from typing import Any

from tests import stand_in
from trainer.module import EfficientNetModule
from trainer.tracking import SafeWandbLogger


def _slow(spec: dict[str, Any]) -> type[EfficientNetModule]:
    finish = SafeWandbLogger.finish

    def finish_late(self: SafeWandbLogger, exit_code: int, *, within_s: float | None = None) -> None:
        time.sleep(spec["seconds"])
        finish(self, exit_code, within_s=within_s)
        Path(spec["finished"]).touch()

    SafeWandbLogger.finish = finish_late  # type: ignore[method-assign]
    return EfficientNetModule


if __name__ == "__main__":
    stand_in.main("tests.slow_tracking", _slow)
