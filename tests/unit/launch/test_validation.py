import json
from pathlib import Path

import pytest

from configs.load import load_config
from configs.problems import ConfigError
from configs.run import RunDirectory
from launch.validation import Options, Subject, subject_of, validate
from tests.unit.launch.commands import MINIMAL


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    found = RunDirectory.of(load_config([], [*MINIMAL, f"runs_dir={tmp_path}/runs", "run_id=mine"]).config)
    found.freeze(load_config([], [*MINIMAL, f"runs_dir={tmp_path}/runs", "run_id=mine"]).config)
    return found


def subject(named: str, options: Options | None = None) -> Subject:
    problems: list[object] = []
    found = subject_of(named, options or Options(), problems)  # type: ignore[arg-type]
    assert not problems
    return found


def test_a_run_goes_before_a_model_of_its_name(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert subject("mi").run == RunDirectory(Path("runs/mine"))
    assert subject(str(run.path)).run == run
    assert subject("efficientnet_b0.ra_in1k") == Subject(model="efficientnet_b0.ra_in1k")
    run.path.rename(run.path.with_name("efficientnet_b0-1"))
    assert subject("efficientnet_b0").run == RunDirectory(Path("runs/efficientnet_b0-1"))


@pytest.mark.parametrize(
    ("named", "model"),
    [
        ("tf_efficientnetv2_s.in21k_ft_in1k", None),
        ("test_efficientnet", None),
        ("local-dir:some/folder", None),
        ("hf-hub:timm/efficientnet_b0.ra_in1k", None),
        ("timm:resnet18", "resnet18"),
    ],
)
def test_timms_names_are_known_without_timm(
    named: str, model: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert subject(named) == Subject(model=model or named)


def test_a_checkpoint_is_of_the_run_that_it_lies_in(run: RunDirectory) -> None:
    checkpoint = run.checkpoints / "step-000000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    (checkpoint / "checkpoint.ckpt").write_bytes(b"")

    for named in (checkpoint, checkpoint / "checkpoint.ckpt"):
        assert subject(str(named)) == Subject(run=run, checkpoint=checkpoint)


def keys(named: str, options: Options) -> dict[str, str]:
    with pytest.raises(ConfigError) as raised:
        validate(named, options)
    return {problem.key: problem.received for problem in raised.value.problems}


def test_all_mistakes_are_said_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    options = Options(
        image_size="64,64",
        crop_pct="0.875,2",
        real_labels="absent.json",
        devices=0,
        overrides=("model.name=x", "data.num_worker=1", "b.tar"),
    )
    assert keys("absent", options) == {
        "RUN": "absent",
        "KEY=VALUE": '"b.tar"',
        "data.num_worker": "1",
        "--image-size": "64,64",
        "--crop-pct": "0.875,2",
        "--real-labels": "absent.json",
        "--devices": "0",
    }
    assert not list(tmp_path.iterdir())


def test_what_a_model_needs_and_a_run_has_no_use_for(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "weights.pth"
    file.write_bytes(b"")
    assert set(keys("efficientnet_b0", Options())) == {"--shards", "--out"}
    assert set(keys("efficientnet_b0", Options(model="efficientnet_b1", checkpoint=file))) == {
        "--model",
        "--shards",
        "--out",
        "--checkpoint",
    }
    assert set(keys(str(file), Options())) == {"--model", "--shards", "--out"}
    assert set(keys(str(run.path), Options(model="efficientnet_b1"))) == {"--model"}
    assert keys(str(run.path), Options(out=file / "below")) == {"--out": str(file / "below")}


def test_more_devices_than_gpus_are_refused(run: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert keys(str(run.path), Options(devices=3)) == {"--devices": "3"}


def test_a_file_beside_a_folder_of_labels_is_no_list(run: RunDirectory, tmp_path: Path) -> None:
    labels = tmp_path / "labels"
    labels.mkdir()
    (labels / "real.json").write_text(json.dumps([[1]]))
    assert keys(str(run.path), Options(real_labels=str(labels))) == {"--real-labels": str(labels)}
