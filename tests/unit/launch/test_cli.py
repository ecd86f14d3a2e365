"""The command line: quick, without torch, and plain about a user's mistakes."""

import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from configs.exit_codes import EXIT_DO_NOT_RETRY
from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from launch.fit import fit
from launch.prediction import predict
from launch.validation import Options, validate
from tests.unit.configs.loading import config_of
from tests.unit.launch.commands import COMMANDS, MINIMAL, effnet

HEAVY = {"torch", "torchvision", "pytorch_lightning", "timm", "webdataset", "wandb", "deepspeed"}
BAD = ["fit", *MINIMAL, "trainer.max_epoch=5", "seed=x", "data.num_lanes=7"]


def imported(stderr: str) -> set[str]:
    """Top-level packages in the output of PYTHONPROFILEIMPORTTIME, which a process that takes over inherits."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


# Speed


def test_help_answers_in_under_half_a_second() -> None:
    command = [str(Path(sys.executable).with_name("effnet")), "--help"]
    times = []
    for _ in range(5):  # the best of them, so that a busy machine fails no one
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        times.append(time.perf_counter() - started)

    assert min(times) < 0.5


@pytest.mark.parametrize(
    "arguments",
    [["--help"], *([name, "--help"] for name in COMMANDS if name != "shards"), ["config", *MINIMAL], BAD],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_the_launcher_imports_neither_torch_nor_numpy(arguments: list[str], tmp_path: Path) -> None:
    done = effnet(*arguments, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")

    assert done.returncode == (EXIT_DO_NOT_RETRY if arguments is BAD else 0)
    found = imported(done.stderr)
    assert "typer" in found
    assert not found & {*HEAVY, "numpy"}


def test_the_help_of_shards_comes_without_torch(tmp_path: Path) -> None:
    done = effnet("shards", "--help", cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")

    assert done.returncode == 0
    assert "build" in done.stdout
    found = imported(done.stderr)
    assert "datamodules" in found
    assert not found & HEAVY


# Help


def test_help_names_every_command(tmp_path: Path) -> None:
    done = effnet("--help", cwd=tmp_path)

    assert {"cancel", "config", "export", "fit", "launch", "logs", "runs", "shards", "status", "validate"} <= set(
        COMMANDS
    )
    for name in COMMANDS:
        assert f"│ {name} " in done.stdout


def test_no_command_at_all_prints_the_help(tmp_path: Path) -> None:
    done = effnet(cwd=tmp_path)

    assert "Usage: effnet" in done.stdout + done.stderr


# config


def test_config_prints_every_value_with_its_origin(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: configs/experiment/b0_imagenet.yaml\nname: mine\n")

    done = effnet("config", "--config", "mine.yaml", "optimizer.lr=0.1", "tracking.project=日本", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert 'name: "mine"  # mine.yaml:2' in lines
    assert "optimizer.lr: 0.1  # command line" in lines
    assert 'tracking.project: "日本"  # command line' in lines
    assert "seed: 0  # default" in lines
    assert any(line.startswith("optimizer.kwargs: {") and "# b0_imagenet.yaml:" in line for line in lines)


def test_what_config_prints_is_a_config(tmp_path: Path) -> None:
    done = effnet("config", "--config", "configs/experiment/finetune.yaml", "seed=3", cwd=tmp_path)
    file = tmp_path / "printed.yaml"
    file.write_text(done.stdout, encoding="utf-8")

    assert load_config([str(file)]).config == load_config(["experiment/finetune.yaml"], ["seed=3"]).config


# Mistakes


def test_a_bad_config_ends_fit_with_93_one_message_and_nothing_on_disk(tmp_path: Path) -> None:
    done = effnet(*BAD, cwd=tmp_path)

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[0] == "error: configuration: 3 problems"
    assert "trainer.max_epoch  (command line)" in done.stderr
    assert "did you mean trainer.max_epochs?" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "a recipe, such as --config configs/experiment/digits.yaml"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["configs/experiment/digits.yaml"], "--config configs/experiment/digits.yaml"),
        ([*MINIMAL, "trainer.num_nodes=2"], "effnet fit trains on this machine"),
        ([*MINIMAL, "trainer.accelerator=cuda"], "cpu or auto: no GPU is here"),
        ([*MINIMAL, "trainer.precision=16-mixed"], "32-true or bf16-mixed: no GPU is here"),
        (
            [*MINIMAL, "data.decoder=nvjpeg"],
            'data.decoder\n      received  "nvjpeg"\n      accepted  cpu: no GPU is here',
        ),
        ([*MINIMAL, "data.decoder=nvjpeg", "trainer.accelerator=cpu"], "cpu beside trainer.accelerator = cpu"),
        ([*MINIMAL, "trainer.devices=3"], "a multiple of micro_batch_size x devices"),
        ([*MINIMAL, "runs_dir=/dev/null/runs"], "a folder in which /dev/null/runs/run-"),
        (["--config", "experiment/digits.yaml", "runs_dir=/dev/null/runs"], "a folder in which /dev/null/runs/digits-"),
        (["--run", "absent"], "a run in runs/ (none)"),
        ([*MINIMAL, b"name=\xff".decode(errors="surrogateescape")], "name"),
        ([*MINIMAL, b"\xff=1".decode(errors="surrogateescape")], "text in UTF-8"),
    ],
)
def test_a_mistake_ends_fit_before_anything_is_written(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = effnet("fit", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "Traceback" not in done.stderr
    assert says in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lacking", [("soundfile",), ("soundfile", "torchaudio")])
@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_what_recordings_need_is_asked_for_before_anything_is_started(
    command: str, lacking: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in lacking:
        monkeypatch.setitem(sys.modules, name, None)
    audio = [*MINIMAL, "data.modality=audio", "model.in_chans=1", f"runs_dir={tmp_path}", "run_id=mine"]
    run = RunDirectory(tmp_path / "mine")
    if command != "fit":
        run.freeze(load_config([], audio).config)
    start = {
        "fit": partial(fit, [], audio, None),
        "validate": partial(validate, str(run.path), Options()),
        "predict": partial(predict, str(run.path), ["a.wav"], stdin=(), devices=None, out=None, options=()),
    }[command]
    with pytest.raises(ConfigError) as caught:
        start()

    (problem,) = caught.value.problems
    assert problem.key == "data.modality"
    assert problem.accepted == f"another, or {' and '.join(lacking)} beside it: pip install 'effnet[audio]'"
    assert not list((run.path / "logs").glob("*"))
    assert run.path.exists() == (command != "fit")


@pytest.mark.parametrize("command", ["validate", "export"])
def test_a_run_that_does_not_exist_ends_with_93(command: str, tmp_path: Path) -> None:
    done = effnet(command, "absent", cwd=tmp_path)

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "a run in runs/ (none)" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_run_that_is_done_is_not_trained_again(tmp_path: Path) -> None:
    config = config_of("run_id='12345'", f"runs_dir='{tmp_path}/a: b #1'")
    run = RunDirectory.of(config)
    run.freeze(config)
    run.record_outcome({"attempt": 0, "exit_code": 0})

    again = effnet("fit", "--run", str(run.path), cwd=tmp_path)
    assert (again.returncode, run.attempts) == (0, 0)
    assert "is done" in again.stderr

    inside = effnet("fit", "--run", ".", cwd=run.path)
    assert (inside.returncode, run.attempts) == (0, 0), inside.stderr


def test_a_run_that_was_begun_with_never_goes_on_by_its_name(tmp_path: Path) -> None:
    config = config_of("run_id=mine", f"runs_dir={tmp_path}", "resume=never")
    run = RunDirectory.of(config)
    run.freeze(config)
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    run.record_outcome({"attempt": 0, "exit_code": 0})

    assert effnet("fit", "--run", str(run.path), cwd=tmp_path).returncode == 0
    refused = effnet("fit", "--run", str(run.path), "resume=never", cwd=tmp_path)
    assert "step-000000001 exists" in refused.stderr


def test_a_run_that_is_done_still_refuses_another_experiment(tmp_path: Path) -> None:
    config = config_of("run_id=mine", f"runs_dir={tmp_path}")
    run = RunDirectory.of(config)
    run.freeze(config)
    (run.checkpoints / "step-000000001").mkdir(parents=True)
    run.record_outcome({"attempt": 0, "exit_code": 0})

    done = effnet("fit", *MINIMAL, "run_id=mine", f"runs_dir={tmp_path}", "seed=1", cwd=tmp_path)

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "what run mine was started with" in done.stderr


# launch

JOB = [*MINIMAL, "trainer.devices=2", "trainer.num_nodes=2", "data.global_batch_size=256", "launch.python=/opt/python"]


def test_a_dry_run_prints_the_script_and_writes_nothing(tmp_path: Path) -> None:
    done = effnet("launch", "slurm", "--dry-run", *JOB, "run_id=mine", cwd=tmp_path, WANDB_API_KEY="0123456789")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("#!/bin/bash\n#SBATCH --job-name=effnet-mine-")
    assert f"/opt/python -m launch.rank {tmp_path}/runs/mine" in done.stdout
    assert "0123456789" not in done.stdout
    local = effnet("launch", "local", "--dry-run", *MINIMAL, "run_id=mine", cwd=tmp_path)
    assert "-m launch.cli fit --run runs/mine" in local.stdout
    assert not list(tmp_path.iterdir())


def test_without_slurm_a_launch_says_so(tmp_path: Path) -> None:
    done = effnet("launch", "slurm", *JOB, cwd=tmp_path, PATH="/nowhere")

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "no sbatch here" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_that_exists_is_launched_by_its_name(tmp_path: Path) -> None:
    config = config_of("run_id=mine", "runs_dir=runs", "trainer.devices=2", "seed=7")
    RunDirectory(tmp_path / "runs/mine").freeze(config)

    done = effnet("launch", "slurm", "--run", "mine", "--dry-run", "launch.slurm.qos=high", cwd=tmp_path)

    assert done.returncode == 0, done.stderr
    assert "#SBATCH --qos=high" in done.stdout
    assert f"-m launch.rank {tmp_path}/runs/mine" in done.stdout


def test_a_mean_is_over_named_checkpoints_or_the_newest(tmp_path: Path) -> None:
    done = effnet("export", "any", "--average", "2", "--checkpoint", "step-1", cwd=tmp_path)

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "none beside --checkpoint" in done.stderr


def test_predict_refuses_what_it_cannot_write_before_it_starts(tmp_path: Path) -> None:
    config = config_of(f"runs_dir={tmp_path}", "run_id=r")
    RunDirectory.of(config).freeze(config)
    done = effnet("predict", str(tmp_path / "r"), "a.png", "--out", "answers.xml", cwd=tmp_path)

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert "a file that ends in .csv, .jsonl, .parquet" in done.stderr
