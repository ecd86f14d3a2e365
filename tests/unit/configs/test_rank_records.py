"""What ranks leave for launchers, in order."""

import json
from pathlib import Path

from configs.rank_records import rank_error, rank_errors, rank_log


def test_the_earliest_error_of_the_ranks_comes_first(tmp_path: Path) -> None:
    for rank, when in ((0, 30.0), (1, 10.0), (11, 20.0)):
        rank_error(tmp_path, rank).write_text(json.dumps({"rank": rank, "time": when}))
    rank_log(tmp_path, 0).touch()

    assert [error["rank"] for error in rank_errors(tmp_path)] == [1, 11, 0]
    assert rank_errors(tmp_path / "absent") == []
