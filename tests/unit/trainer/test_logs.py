import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import logging, os, pathlib, sys, warnings
from trainer.logs import logger, redirect_output
assert "torch" not in sys.modules
console = redirect_output(pathlib.Path(sys.argv[1]), to_terminal=sys.argv[2] == "True")
print("printed by Python")
os.system("echo printed by a child process")
print("an error", file=sys.stderr)
warnings.warn("a warning")
logging.getLogger("other").info("not interesting")
logging.getLogger("other").warning("from another library")
logger.debug("a detail")
logger.info("for a person [not markup]")
logger.warning("a long " + "very " * 50 + "warning")
console.print("a table")
sys.stdout.flush()
"""


def run(log_file: Path, *, to_terminal: bool) -> str:
    command = [sys.executable, "-c", PROGRAM, str(log_file), str(to_terminal)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stderr == ""
    return done.stdout


def test_everything_goes_to_the_log_file(tmp_path: Path) -> None:
    run(tmp_path / "rank.log", to_terminal=True)

    log = (tmp_path / "rank.log").read_text()
    for text in (
        "printed by Python",
        "printed by a child process",
        "an error",
        "a warning",
        "WARNING other: from another library",
        "DEBUG effnet: a detail",
        "INFO effnet: for a person [not markup]",
    ):
        assert text in log
    assert "not interesting" not in log


def test_the_terminal_shows_what_is_for_a_person_each_on_a_line(tmp_path: Path) -> None:
    first, second, third = run(tmp_path / "rank.log", to_terminal=True).splitlines()

    assert first.endswith("  for a person [not markup]")
    assert second.endswith("a long " + "very " * 50 + "warning")
    assert third == "a table"


def test_other_ranks_say_nothing_on_the_terminal(tmp_path: Path) -> None:
    assert run(tmp_path / "rank.log", to_terminal=False) == ""
    assert "for a person" in (tmp_path / "rank.log").read_text()


def test_a_log_file_is_added_to(tmp_path: Path) -> None:
    (tmp_path / "rank.log").write_text("of before\n")
    run(tmp_path / "rank.log", to_terminal=True)

    assert (tmp_path / "rank.log").read_text().startswith("of before\n")


ENDLESS = """
import pathlib, sys, time
from trainer.logs import logger, redirect_output
console = redirect_output(pathlib.Path(sys.argv[1]), to_terminal=True)
for number in range(2000):
    logger.info("line %d", number)
    console.print("more " * 20)
logger.info("done")
"""


@pytest.mark.parametrize("lines", [0, 1])
def test_a_pipe_that_is_closed_does_not_end_the_process(lines: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", ENDLESS, str(tmp_path / "rank.log")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for _ in range(lines):
        assert process.stdout.readline().endswith("  line 0\n")
    process.stdout.close()

    assert process.wait(timeout=60) == 0
    assert (tmp_path / "rank.log").read_text().splitlines()[-1].endswith("INFO effnet: done")
