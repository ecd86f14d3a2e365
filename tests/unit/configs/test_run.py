"""The run directory: what identifies a run, what is frozen, what attempts leave behind."""

import json
import os
from pathlib import Path

import pytest

from configs.load import dump_yaml
from configs.problems import ConfigError, Problem
from configs.run import RunDirectory, config_hash, identity
from configs.schema import Config
from tests.unit.configs.loading import config_of

OTHER_EXPERIMENT = ["seed=1", "optimizer.lr=0.5", "data.global_batch_size=512", "data.micro_batch_size=32"]
OTHER_HARDWARE = [
    "name=other",
    "data.num_workers=0",
    "data.prefetch_batches=1",
    "data.eval_batch_size=7",
    "trainer.accelerator=cpu",
    "trainer.devices=2",
    "trainer.num_nodes=2",
    "trainer.num_threads=1",
    "trainer.log_every_n_steps=1",
    "checkpoint.every_n_steps=5",
    "fault.timeout_s=5",
    "tracking.mode=disabled",
    "resume=never",
]


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return RunDirectory(tmp_path / "runs" / "mine")


def problems(run: RunDirectory, config: Config) -> list[Problem]:
    """What a run that has a checkpoint objects to."""
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    with pytest.raises(ConfigError) as caught:
        run.freeze(config)
    return list(caught.value.problems)


# Identity


@pytest.mark.parametrize("override", OTHER_EXPERIMENT)
def test_another_experiment_is_another_run(override: str) -> None:
    assert RunDirectory.of(config_of(override)) != RunDirectory.of(config_of())


def test_another_decoder_is_another_experiment() -> None:
    assert config_hash(config_of("data.decoder=nvjpeg")) != config_hash(config_of())


@pytest.mark.parametrize("override", OTHER_HARDWARE)
def test_other_hardware_is_the_same_experiment(override: str) -> None:
    assert config_hash(config_of(override)) == config_hash(config_of())
    assert override.partition("=")[0] not in identity(config_of())


def test_the_run_id_is_the_name_and_a_hash_or_what_is_set() -> None:
    config = config_of("name=b0", "runs_dir=/somewhere")

    assert RunDirectory.of(config).path == Path("/somewhere") / f"b0-{config_hash(config)[:8]}"
    assert RunDirectory.of(config_of("run_id=mine")).path == Path("runs/mine")
    assert RunDirectory.of(config_of("run_id=mine")).run_id == "mine"


def test_a_home_directory_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")

    assert RunDirectory.of(config_of("runs_dir='~/runs'", "run_id=a")).path == Path("/home/somebody/runs/a")


def test_naming_a_run_creates_nothing(tmp_path: Path) -> None:
    run = RunDirectory.of(config_of(f"runs_dir={tmp_path}/runs"))
    run.check(config_of())

    assert (run.attempts, run.outcomes()) == (0, [])
    assert not list(tmp_path.iterdir())


# Freezing


def test_the_frozen_config_reads_back(run: RunDirectory) -> None:
    config = config_of("optimizer.kwargs={eps: 1e-3}", "run_id='1234e567'")
    run.freeze(config)

    assert run.load_config() == config


@pytest.mark.parametrize("override", OTHER_EXPERIMENT)
def test_a_run_refuses_another_experiment(override: str, run: RunDirectory) -> None:
    run.freeze(config_of())
    before = run.config_file.read_bytes()

    (problem,) = problems(run, config_of(override))

    key, _, value = override.partition("=")
    assert (problem.key, problem.received) == (key, value)
    assert problem.accepted.endswith("what run mine was started with, or another run_id, or resume.allow_changes=true")
    assert run.config_file.read_bytes() == before


def test_a_run_names_every_setting_that_differs(run: RunDirectory) -> None:
    run.freeze(config_of())

    found = problems(run, config_of("data.image_size=64", "optimizer.opt=sgd", "data.num_workers=1"))

    assert [problem.key for problem in found] == ["data.image_size", "optimizer.opt"]
    assert found[0].accepted.startswith("null: what run")
    assert found[1].accepted.startswith('"rmsproptf": what run')


def test_a_run_goes_on_with_other_hardware(run: RunDirectory) -> None:
    run.freeze(config_of())
    changed = config_of(*OTHER_HARDWARE)

    run.freeze(changed)

    assert run.load_config() == changed


def test_a_run_whose_shards_were_moved_goes_on(run: RunDirectory) -> None:
    """Whether they are the same, their index says when it is read."""
    run.freeze(config_of())
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    run.freeze(moved := config_of("data.train_shards=/elsewhere/*.tar"))

    assert run.load_config() == moved
    assert config_hash(moved) != config_hash(config_of())  # without a run_id, it would be another run


def test_a_run_may_change_if_that_is_allowed(run: RunDirectory) -> None:
    run.freeze(config_of())
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    run.freeze(changed := config_of("seed=1", "optimizer.lr=0.5", "resume.allow_changes=true"))

    assert run.load_config() == changed


def test_the_newest_checkpoint_says_what_a_run_was_and_not_the_last_attempt(run: RunDirectory) -> None:
    """An attempt may have been allowed a change, and died before it saved anything."""
    for attempt, step, seed in ((0, 4, 0), (1, 9, 1)):
        path = run.checkpoints / f"step-{step:09d}"
        path.mkdir(parents=True)
        config = config_of(f"seed={seed}").model_dump(mode="json")
        (path / "manifest.json").write_text(json.dumps({"step": step, "attempt": attempt, "config": config}))
    run.create()
    run.config_file.write_text(dump_yaml(config_of("seed=2")))

    run.check(config_of("seed=1"))
    for seed in (0, 2):
        with pytest.raises(ConfigError, match="seed"):
            run.check(config_of(f"seed={seed}"))


def test_a_frozen_config_that_was_damaged_is_a_mistake_with_a_name(run: RunDirectory) -> None:
    run.freeze(config_of())
    run.config_file.write_text("data: [")

    (problem,) = problems(run, config_of())

    assert (problem.key, problem.received) == ("--config", str(run.config_file))


def test_a_run_without_a_checkpoint_may_become_another_experiment(run: RunDirectory) -> None:
    run.freeze(config_of())
    run.freeze(config_of("seed=1"))

    assert run.load_config().seed == 1


def test_a_runs_dir_that_cannot_be_written_is_a_mistake_with_a_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = config_of(f"runs_dir={tmp_path}/file/runs")

    with pytest.raises(ConfigError) as caught:
        RunDirectory.of(config).freeze(config)

    (problem,) = caught.value.problems
    assert problem.key == "runs_dir"
    assert "Not a directory" in problem.accepted


# What attempts leave


def test_the_wandb_id_is_made_once(run: RunDirectory) -> None:
    first = run.wandb_id()

    assert len(first) == 8
    assert run.wandb_id() == first == RunDirectory(run.path).wandb_id()
    assert first != RunDirectory(run.path.parent / "another").wandb_id()


def test_attempts_are_numbered_from_zero(run: RunDirectory) -> None:
    assert [run.begin_attempt() for _ in range(3)] == [0, 1, 2]
    assert run.attempts == 3
    assert run.log_dir(2).is_dir()
    assert run.log_dir(2).name == "attempt-02"


def test_an_attempt_whose_logs_were_removed_leaves_its_number_unused(run: RunDirectory) -> None:
    run.begin_attempt()
    run.begin_attempt()
    run.log_dir(0).rmdir()

    assert run.begin_attempt() == 2


def test_a_hundred_attempts_are_counted(run: RunDirectory) -> None:
    run.log_dir(99).mkdir(parents=True)
    run.log_dir(100).mkdir()

    assert run.begin_attempt() == 101


def test_outcomes_are_kept_in_order_and_replaced_by_number(run: RunDirectory) -> None:
    run.freeze(config_of())
    for attempt, code in ((0, 1), (1, 85), (1, 0)):
        run.record_outcome({"attempt": attempt, "exit_code": code})

    assert run.outcomes() == [{"attempt": 0, "exit_code": 1}, {"attempt": 1, "exit_code": 0}]
    assert json.loads(run.outcome_file.read_text()) == {"attempts": run.outcomes()}


def test_what_a_user_has_kept_of_an_attempts_logs_is_no_attempt(run: RunDirectory) -> None:
    run.begin_attempt()
    run.log_dir(0).rename(run.log_dir(0).with_name("attempt-00-before-the-change"))
    assert run.begin_attempt() == 0


# Finding


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Runs of three names, the newest last, and a folder that is none."""
    monkeypatch.chdir(tmp_path)
    for age, name in enumerate(["digits", "digits-b", "digits-a", "b0", "digits-c"]):
        folder = Path("runs") / name
        folder.mkdir(parents=True)
        if name != "digits-c":
            (folder / "config.yaml").touch()
        os.utime(folder, (age, age))
    return Path("runs")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("runs/b0", "b0"),
        ("runs/b0/", "b0"),
        ("b0", "b0"),
        ("b", "b0"),
        ("digits", "digits"),
        ("digits-", "digits-a"),
        ("digits-b", "digits-b"),
    ],
)
def test_a_run_is_found_by_path_id_or_beginning(text: str, name: str, runs: Path) -> None:
    assert RunDirectory.find(text).run_id == name


@pytest.mark.parametrize("text", ["absent", "runs/absent", "/nowhere/at/all", "", "*", "[", "../runs", "digits-c"])
def test_a_run_that_does_not_exist_is_answered_with_those_that_do(text: str, runs: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        RunDirectory.find(text)

    (problem,) = caught.value.problems
    assert (problem.key, problem.received) == ("RUN", text)
    assert problem.accepted == "a run in runs/ (b0, digits, digits-a, digits-b), or its path"


def test_without_any_run_none_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(ConfigError, match=r"a run in runs/ \(none\), or its path"):
        RunDirectory.find("any")
