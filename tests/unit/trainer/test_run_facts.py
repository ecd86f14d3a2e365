from pathlib import Path

from configs.files import read_json
from configs.load import load_config
from configs.run import RunDirectory
from trainer.run_facts import counts, described, ended_as, table

FAILED = {
    "attempt": 0,
    "exit_class": "retry",
    "rank": 3,
    "host": "node2",
    "step": 17,
    "error": "RuntimeError",
    "reason": "RuntimeError: <b>bad</b>",
    "started": 0.0,
    "ended": 60.0,
}
STOPPED = {"attempt": 1, "exit_class": "interrupted", "reason": "SIGTERM at step 20: checkpointed"}
WENT_BACK = {"attempt": 2, "exit_class": "retry", "reason": "step 21: the loss is nan", "rollback": True}


def test_attempts_are_named_and_counted_by_how_they_ended() -> None:
    outcomes = [FAILED, STOPPED, WENT_BACK]
    assert [ended_as(each) for each in outcomes] == ["failed", "preempted or stopped", "rolled back"]
    assert counts(outcomes) == {"events/preemptions": 1, "events/failures": 1, "events/rollbacks": 1}


def test_a_culprit_is_named_with_its_place() -> None:
    assert described(FAILED) == "rank 3, host node2, step 17: RuntimeError: <b>bad</b>"
    assert described(STOPPED) == "SIGTERM at step 20: checkpointed"


def test_the_table_holds_text_alone() -> None:
    page = table([FAILED, STOPPED])
    assert page.count("<tr>") == 3
    assert "RuntimeError: &lt;b&gt;bad&lt;/b&gt;" in page
    assert "<td>1970-01-01T00:01:00+00:00</td>" in page
    assert "None" not in page


def test_origins_outlive_a_run_that_goes_on_by_its_own_configuration(tmp_path: Path) -> None:
    file = tmp_path / "digits.yaml"
    file.write_text("data: {train_shards: a, val_shards: b}\noptimizer:\n  lr: 0.5\n")
    place = [f"runs_dir={tmp_path}", "run_id=toy"]
    first = load_config([str(file)], [*place, "seed=3"])
    run = RunDirectory.of(first.config)
    run.freeze(first.config)
    run.keep_origins(first.origins)
    again = load_config([str(run.config_file)], [*place, "seed=4"])
    run.keep_origins(again.origins)

    origins = read_json(run.origins_file)
    assert (origins["optimizer.lr"], origins["seed"]) == ("digits.yaml:3", "command line")
    assert "optimizer.momentum" not in origins
