"""`effnet fit` whose ranks train with another module in place of `EfficientNetModule`, through the command line.

``python -m tests.NAME SPEC fit …`` is ``effnet fit …``; each of its ranks is ``python -m tests.NAME SPEC rank …``.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.module import EfficientNetModule


def main(name: str, module: Callable[[dict[str, Any]], type[EfficientNetModule]]) -> None:
    """Be the launcher or a rank, whatever the arguments say.

    Args:
        name: Of the program, as after ``python -m``.
        module: Makes the ranks' module of what the JSON file SPEC holds.
    """
    spec, role = Path(sys.argv[1]), sys.argv[2]
    if role != "rank":
        del sys.argv[1]
        _launch(name, spec)
        return
    del sys.argv[1:3]
    code = _rank(module(json.loads(spec.read_text())))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _rank(module: type[EfficientNetModule]) -> int:
    import trainer.__main__
    import trainer.assembly

    trainer.assembly.EfficientNetModule = module  # type: ignore[misc]
    return trainer.__main__.main()


def _launch(name: str, spec: Path) -> None:
    import launch.attempts
    import launch.cli

    plain = launch.attempts.trainer_command

    def replaced(*arguments: str, devices: int) -> list[str]:
        command = plain(*arguments, devices=devices)
        place = command.index("trainer")
        return [*command[:place], name, str(spec), "rank", *command[place + 1 :]]

    launch.attempts.trainer_command = replaced
    launch.cli.main()
