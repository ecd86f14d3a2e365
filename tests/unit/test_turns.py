"""Two suites on one machine take turns with the pretended hosts."""

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from pathlib import Path
from tests.clusters.turns import alone
with alone(Path(sys.argv[1]), "the network"):
    print("mine", flush=True)
    sys.stdin.read()
"""


def test_a_second_suite_waits_and_says_so(tmp_path: Path) -> None:
    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(tmp_path / "lock")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    first = start()
    assert first.stdout is not None
    assert first.stdout.readline() == "mine\n"
    second = start()
    assert second.stderr is not None
    assert "waiting until the network of another test suite is down" in second.stderr.readline()
    first.kill()  # even so
    first.communicate()
    assert second.communicate()[0] == "mine\n"
    assert second.returncode == 0
