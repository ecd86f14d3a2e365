import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.exit_codes import EXIT_DONE, EXIT_INTERRUPTED
from configs.load import load_config
from configs.problems import ConfigError
from configs.schema import Config
from launch.job import job_spec
from launch.sweeps import slurm_array as sweep_slurm
from launch.sweeps import sweep
from launch.sweeps.folder import SweepFolder, SweepId, Trial, is_unfinished, read_trial, write_trial

GOLDEN = Path(__file__).parent / "golden"
OPTIONS = sweep.Options(count=5, agents=4, max_failures=3, max_restarts=1)
DIGITS = ["configs/experiment/digits.yaml"]


def config(*overrides: str) -> Config:
    return load_config(DIGITS, ["trainer.devices=2", "trainer.accelerator=cpu", *overrides]).config


def script(*overrides: str) -> str:
    settings = config("launch.python=/env/bin/python", *overrides)
    spec = job_spec(settings, code_dir=Path("/w/runs/sweep-a/launch/code-1"), work_dir=Path("/w"), environment={})
    spec = replace(spec, run_dir=Path("/w/runs/sweep-a"), run_id="sweep-a")
    command = ["-m", "launch.cli", "sweep", "--id=team/toys/a", "--runs-dir=/w/it's"]
    return sweep_slurm.render(spec, settings.launch.slurm, agents=4, command=command)


def test_the_script_of_an_array_is_as_it_was() -> None:
    rendered = script("launch.time_limit_minutes=60", "launch.slurm.partition=gpu")
    golden = GOLDEN / "slurm_sweep.sh"
    if "EFFNET_WRITE_GOLDEN" in os.environ:
        golden.write_text(rendered)
    assert rendered == golden.read_text()


def test_what_an_array_cannot_be_is_refused() -> None:
    wrong = ["trainer.num_nodes=2", "launch.slurm.elastic=true", "launch.image=image"]
    with pytest.raises(ConfigError) as error:
        script(*wrong, "data.global_batch_size=128")
    keys = {problem.key for problem in error.value.problems}
    assert keys == {"trainer.num_nodes", "launch.slurm.elastic", "launch.slurm.container"}


def test_options_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError) as error:
        sweep.check_options(None, None, OPTIONS, slurm=False, runs_dir=None)
    assert [problem.key for problem in error.value.problems] == ["command line", "--agents"]


def test_a_dry_run_writes_and_asks_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [f"runs_dir={tmp_path}", "tracking.mode=online", "trainer.devices=2", "trainer.accelerator=cpu"]
    code = sweep.new("configs/sweep/digits_lr.yaml", DIGITS, overrides, OPTIONS, slurm=True, dry_run=True)
    assert code == EXIT_DONE
    assert "--array=0-3" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("quiet", [False, True])
@pytest.mark.parametrize("slurm", [False, True])
def test_agents_are_told_to_be_quiet(
    slurm: bool, quiet: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, quiet=quiet, agents=1)
    overrides = [f"runs_dir={tmp_path}", "trainer.devices=2", "trainer.accelerator=cpu"]
    sweep.new("configs/sweep/digits_lr.yaml", DIGITS, overrides, options, slurm=slurm, dry_run=True)
    assert ("--quiet" in capsys.readouterr().out) == quiet


@pytest.mark.parametrize("name", ["a", "a/b", "a/b/", "a/b/c/d"])
def test_an_id_is_entity_project_and_id(name: str) -> None:
    with pytest.raises(ConfigError, match="ENTITY/PROJECT/ID"):
        SweepId.parse(name)
    assert str(SweepId.parse("a/b/c")) == "a/b/c"


def test_a_sweep_that_is_not_here_needs_its_configuration(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        sweep.join("a/b/c", [], [], OPTIONS, runs_dir=str(tmp_path), slurm=False, dry_run=False)


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    return SweepFolder(runs_dir=tmp_path, id=SweepId(name="local-1"))


def test_a_folder_is_one_sweeps(folder: SweepFolder) -> None:
    folder.create(None, config())
    folder.create(None, config())
    with pytest.raises(ConfigError, match="local-1"):
        replace(folder, id=SweepId(name="local-1", entity="team", project="toys")).create(None, config())


def test_settings_that_trials_would_not_read_are_refused(folder: SweepFolder) -> None:
    """Devices and the like are no part of an experiment, so that the sweep is the same: trials have the first ones."""
    folder.create(None, config())
    with pytest.raises(ConfigError, match=r"checkpoint\.every_n_steps") as error:
        folder.create(None, config("checkpoint.every_n_steps=7"))
    assert len(error.value.problems) == 1


def test_a_checkpoint_to_begin_from_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_work", lambda *_: EXIT_DONE)
    monkeypatch.chdir(tmp_path)
    overrides = ["resume=old/step-1", "trainer.accelerator=cpu", "runs_dir=runs"]
    sweep.new("configs/sweep/digits_lr.yaml", DIGITS, overrides, replace(OPTIONS, agents=1), slurm=False, dry_run=False)
    (base,) = tmp_path.glob("runs/*/base.yaml")
    assert load_config([str(base)]).config.resume.checkpoint == str(tmp_path / "old" / "step-1")


def test_one_agent_has_a_trial(folder: SweepFolder) -> None:
    with folder.claimed("a") as first, folder.claimed("a") as second, folder.claimed("b") as other:
        assert first is not None
        assert second is None
        assert other is not None
    with folder.claimed("a") as again:
        assert again is not None


@pytest.mark.parametrize(
    ("attempts", "outcomes", "stopped", "expected"),
    [
        (0, [], False, True),
        (1, [], False, True),  # its launcher was killed
        (1, [EXIT_INTERRUPTED], False, True),
        (1, [EXIT_INTERRUPTED], True, False),
        (1, [EXIT_DONE], False, False),
        (1, [1], False, False),  # failed, and so it counts
        (2, [1], False, True),
    ],
)
def test_a_trial_goes_on_if_it_was_cut_off(
    folder: SweepFolder, attempts: int, outcomes: list[int], stopped: bool, expected: bool
) -> None:
    trial: Any = Trial(sweep="local-1", trial="a", parameters={"seed": 1}, stopped=stopped)
    run = folder.run("a")
    write_trial(run, trial)
    for _ in range(attempts):
        run.begin_attempt()
    for attempt, code in enumerate(outcomes):
        run.record_outcome({"attempt": attempt, "exit_code": code})
    assert read_trial(run) == trial
    assert run.wandb_id() == "a"
    assert folder.trials() == ["a"]
    assert is_unfinished(run, trial) is expected
