"""Real processes, which meet before there is a process group."""

from pathlib import Path

import pytest

from configs.problems import ConfigError
from tests.unit.trainer.processes import run_ranks
from trainer.processes import Processes
from trainer.rendezvous import on_first_rank

PROGRAM = """
import json, sys, time
from pathlib import Path
from configs.problems import ConfigError, DataError, UnreachableError, Problem
from trainer.processes import Processes
from trainer.rendezvous import on_first_rank
file = Path({file!r})

def work():
    time.sleep(0.5)
    file.write_text("fetched")
    {then}

processes = Processes.from_environment()
try:
    on_first_rank(processes, work)
    result = file.read_text()
except Exception as error:
    result = f"{{type(error).__name__}}: {{error}}"
from torch import distributed
distributed.init_process_group("gloo")  # meets at the same address
distributed.barrier()
print(json.dumps(result))
"""


def test_the_others_wait_for_the_first(tmp_path: Path) -> None:
    code = PROGRAM.format(file=str(tmp_path / "file"), then="pass")
    assert run_ranks(code, world_size=3) == ["fetched"] * 3


@pytest.mark.parametrize(
    ("raised", "elsewhere"),
    [("UnreachableError('away')", "UnreachableError: away"), ("DataError('gone')", "DataError: gone")],
)
def test_what_the_first_raises_all_raise(raised: str, elsewhere: str, tmp_path: Path) -> None:
    code = PROGRAM.format(file=str(tmp_path / "file"), then=f"raise {raised}")
    assert run_ranks(code, world_size=2) == [elsewhere] * 2


def test_alone_there_is_nobody_to_wait_for() -> None:
    def work() -> None:
        raise ConfigError([])

    with pytest.raises(ConfigError):
        on_first_rank(Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1), work)
