"""An agent of a sweep, and the process that speaks with a server for it, which here is a few lines of another one."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs.exit_codes import EXIT_DO_NOT_RETRY, EXIT_INTERRUPTED, EXIT_RETRY
from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from configs.sweep_file import Sweep
from launch import cli
from launch.sweeps import source, sweep
from launch.sweeps.agent import Agent
from launch.sweeps.folder import SweepFolder, SweepId, Trial, is_unfinished, read_trial, write_trial
from launch.sweeps.source import LocalSearch, WandbSource
from tests.unit.launch.test_sweep import OPTIONS

CONFIG = load_config(["configs/experiment/digits.yaml"], ["trainer.accelerator=cpu"]).config
ENTRY = "import json, select, sys, time\nsay = lambda m: print(json.dumps(m), flush=True)\n"


@pytest.fixture
def folder(tmp_path: Path) -> SweepFolder:
    made = SweepFolder(runs_dir=tmp_path, id=SweepId(name="toys", entity="team", project="a"))
    made.create(None, CONFIG)
    return made


def agent(folder: SweepFolder, **changes: Any) -> Agent:
    options = {"max_trials": None, "max_failures": 2, "max_restarts": 0, "console": Console(stderr=True), **changes}
    return Agent(folder=folder, **options)


def speaks(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(source, "SPEAKER", [sys.executable, "-c", ENTRY + text])


def never() -> bool:
    return False


@pytest.mark.parametrize("name", ["a/../../../elsewhere", "..", "a b", "", ".hidden"])
def test_a_trial_whose_name_would_leave_the_folder_of_runs_is_refused(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    speaks(monkeypatch, f"say({{'trial': {name!r}, 'parameters': {{'seed': 1}}}})")
    before = sorted(folder.runs_dir.iterdir())
    with WandbSource(folder) as trials, pytest.raises(ConfigError, match="trial"):
        agent(folder).work(trials)
    assert sorted(folder.runs_dir.iterdir()) == before


@pytest.mark.parametrize(
    "parameters",
    [{"runs_dir": "/"}, {"launch": {"python": "sh"}}, {"data.prepare": "digits"}, {"--run": 1}, {"x; rm": 1}],
)
def test_a_trial_of_what_no_sweep_may_choose_is_refused(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any]
) -> None:
    speaks(monkeypatch, f"say({{'trial': 'a', 'parameters': {parameters!r}}})")
    with WandbSource(folder) as trials, pytest.raises(ConfigError):
        agent(folder).work(trials)
    assert folder.trials() == []


def test_an_agent_that_waits_for_a_trial_ends_at_a_signal(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B hands out nothing while a sweep is paused, and says nothing."""
    speaks(monkeypatch, "time.sleep(600)")
    waiting = threading.Event()

    class Waits(WandbSource):
        def _begin(self) -> "subprocess.Popen[bytes]":
            waiting.set()
            return super()._begin()

    def end() -> None:
        assert waiting.wait(60)
        time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end).start()
    with Waits(folder) as trials:
        assert agent(folder).work(trials) == EXIT_INTERRUPTED


def test_an_error_of_the_server_does_not_end_the_trial(folder: SweepFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    speaks(monkeypatch, "say({'trial': 'a', 'parameters': {'seed': 1}})\nsay({'error': 'is away'})")
    with WandbSource(folder) as speaker:
        trials = speaker.trials(never)
        assert next(trials) == Trial(sweep="toys", trial="a", parameters={"seed": 1})
        for _ in range(20):
            assert not speaker.wants_to_stop()
            time.sleep(0.02)
        with pytest.raises(ConfigError, match="is away"):
            next(trials)


def test_a_word_to_stop_is_heard_though_it_comes_with_the_trial(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = b'{"trial": "a", "parameters": {}}\n{"stop": "a"}\n'
    speaks(monkeypatch, f"import os; os.write(1, {lines!r})\nsys.stdin.readline()")
    with WandbSource(folder) as speaker:
        trials = speaker.trials(never)
        next(trials)
        assert speaker.wants_to_stop()
        assert not speaker.wants_to_stop()
        assert next(trials, None) is None


def test_wandbs_agent_that_dies_is_no_mistake_of_the_sweep(
    folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    speaks(monkeypatch, "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")

    def command(**_: object) -> None:
        with WandbSource(folder) as trials:
            agent(folder).work(trials)

    monkeypatch.setattr(cli, "app", command)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == EXIT_RETRY
    assert "error: W&B's agent ended with status -9, see " in capsys.readouterr().err


def test_a_server_that_never_answers_is_one_message(monkeypatch: pytest.MonkeyPatch) -> None:
    speaks(monkeypatch, "time.sleep(600)")
    monkeypatch.setattr(source, "TIMEOUT_S", 0.5)
    with pytest.raises(ConfigError, match="no answer"):
        source.register(Sweep(document={"method": "grid"}), entity=None, project="toys")


def test_trials_that_are_refused_before_they_begin_do_not_hold_up_the_sweep(tmp_path: Path) -> None:
    """With `effnet fit` itself. The next agent begins with what was cut off, which these were not."""
    search = Sweep(document={"method": "grid", "parameters": {"trainer.precision": {"values": ["no", "none"]}}})
    folder = SweepFolder(runs_dir=tmp_path, id=SweepId(name="local-1"))
    folder.create(search, CONFIG)

    assert agent(folder).work(LocalSearch(search, folder)) == EXIT_DO_NOT_RETRY

    runs = [folder.run(name) for name in folder.trials()]
    trials = [read_trial(run) for run in runs]
    assert len(runs) == 2
    assert not any(is_unfinished(run, trial) for run, trial in zip(runs, trials, strict=True) if trial)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_trial_that_waits_to_start_again_goes_on_after_its_agent(
    toy_overrides: Callable[..., list[str]], tmp_path: Path, number: int
) -> None:
    """Its last attempt has failed, and no other has begun: the outcome alone says no more than that."""
    file = tmp_path / "sweep.yaml"
    file.write_text('{"method": "grid", "parameters": {"seed": {"values": [1]}}}')
    command = [sys.executable, "-m", "launch.cli", "sweep", f"--sweep={file}", f"runs_dir={tmp_path / 'runs'}"]
    command += [*toy_overrides(fault__restart_backoff_s=500, checkpoint__every_n_steps=1), "--max-restarts=3"]
    command += ["data.train_shards=http://127.0.0.1:9/a.tar", "data.download_timeout_s=1", "data.download_attempts=1"]
    working = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert working.stderr is not None
    assert any("restart 1 of 3" in line for line in working.stderr)

    working.send_signal(number)
    working.communicate(timeout=60)

    (file,) = tmp_path.glob("runs/*/trial.json")
    run = RunDirectory(file.parent)
    trial = read_trial(run)
    assert [past["exit_class"] for past in run.outcomes()] == ["retry"]
    assert trial is not None
    assert is_unfinished(run, trial)


def test_a_trial_of_another_sweep_is_not_gone_on_with(folder: SweepFolder) -> None:
    other = SweepFolder(runs_dir=folder.runs_dir, id=SweepId(name="toys-2"))
    write_trial(other.run("a"), Trial(sweep="toys-2", trial="a", parameters={"seed": 1}))
    assert list(agent(folder)._unfinished()) == []
    assert [trial.trial for trial in agent(other)._unfinished()] == ["a"]


@pytest.mark.parametrize("given", [[], ["configs/experiment/digits.yaml"]])
def test_a_sweep_without_a_server_that_is_not_here_is_one_message(tmp_path: Path, given: list[str]) -> None:
    with pytest.raises(ConfigError, match="one without a server is its folder"):
        sweep.join("local-1", given, [], OPTIONS, runs_dir=str(tmp_path), slurm=False, dry_run=False)
    assert list(tmp_path.iterdir()) == []
