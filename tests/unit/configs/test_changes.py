"""What may differ between two attempts of a run, and what is said about the rest."""

from pathlib import Path
from typing import Any

import pytest

from configs.changes import YOUNGER, changes, identity, refusals
from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.configs.loading import config_of


def saved(*overrides: str) -> dict[str, Any]:
    """What a checkpoint keeps of a configuration."""
    return config_of(*overrides).model_dump(mode="json")


def kinds(old: dict[str, Any], *overrides: str) -> dict[str, str]:
    return {change.key: change.kind for change in changes(old, config_of(*overrides))}


def test_the_same_settings_are_no_change() -> None:
    assert changes(saved("optimizer.kwargs={eps: 1e-3}"), config_of("optimizer.kwargs={eps: 1e-3}")) == []


@pytest.mark.parametrize(
    "override",
    [
        "trainer.devices=4",
        "data.num_workers=9",
        "trainer.max_steps=7",
        "trainer.check_val_every_n_epoch=2",
        "data.max_bad_fraction=0.5",
        "data.train_shards=/elsewhere/x.tar",
        "data.val_shards=/elsewhere/y.tar",
        "checkpoint.keep_last=9",
    ],
)
def test_what_leaves_every_step_as_it_was_is_harmless(override: str) -> None:
    assert kinds(saved(), override) == {override.partition("=")[0]: "harmless"}


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "data.global_batch_size=512",
        "data.micro_batch_size=32",
        "data.num_lanes=4",
        "data.shuffle_window_shards=2",
        "optimizer.lr=0.5",
        "ema.decay=0.5",
        "loss.label_smoothing=0.0",
        "trainer.max_epochs=400",
        "trainer.precision=32-true",
        "data.augmentation.hflip=0.0",
    ],
)
def test_what_changes_a_step_breaks_exactness(override: str) -> None:
    assert kinds(saved(), override) == {override.partition("=")[0]: "inexact"}


@pytest.mark.parametrize(
    "override",
    [
        "model.name=efficientnet_b1",
        "model.compound_phi=1.0",
        "model.in_chans=1",
        "model.checkpoint_path=x.pth",
        "data.num_classes=10",
        "optimizer.opt=sgd",
    ],
)
def test_what_tensors_have_the_shape_of_cannot_change(override: str) -> None:
    assert kinds(saved(), override) == {override.partition("=")[0]: "impossible"}


def test_one_process_and_several_are_the_same_strategy_and_deepspeed_is_another() -> None:
    assert kinds(
        saved("trainer.strategy=single", "trainer.devices=1"), "trainer.strategy=ddp", "trainer.devices=2"
    ) == {"trainer.devices": "harmless"}
    zero = ("trainer.strategy=deepspeed", "deepspeed.zero_stage=1", "ema.enabled=false")
    assert kinds(saved("ema.enabled=false"), *zero) == {
        "trainer.strategy": "impossible",
        "deepspeed.zero_stage": "impossible",
    }


def test_how_a_run_is_named_and_resumed_is_not_spoken_of() -> None:
    assert kinds(saved("resume=never", "run_id=a", "name=b"), "runs_dir=/r", "resume.allow_changes=true") == {}


def test_a_setting_that_an_older_effnet_did_not_have_was_as_its_default_is() -> None:
    old = saved()
    del old["data"]["max_bad_fraction"], old["ema"], old["optimizer"]["momentum"]
    old["of_the_past"] = 3

    assert kinds(old) == {}
    assert kinds(old, "ema.decay=0.5") == {"ema.decay": "inexact"}


def test_what_is_validated_is_no_longer_harmless_where_the_schedule_goes_by_it() -> None:
    plateau = ("scheduler.sched=plateau", "scheduler.decay_rate=0.1")

    assert kinds(saved(*plateau), *plateau, "trainer.check_val_every_n_epoch=2", "data.val_shards=/y.tar") == {
        "trainer.check_val_every_n_epoch": "inexact",
        "data.val_shards": "inexact",
    }


def test_the_number_of_devices_is_no_longer_harmless_where_batchnorm_sees_all_of_them() -> None:
    synchronised = ("trainer.sync_batchnorm=true", "data.micro_batch_size=16")

    assert kinds(saved(*synchronised), *synchronised, "trainer.devices=2", "trainer.num_nodes=2") == {
        "trainer.devices": "inexact",
        "trainer.num_nodes": "inexact",
    }
    assert kinds(saved(), "trainer.devices=2") == {"trainer.devices": "harmless"}
    assert kinds(saved(), "trainer.sync_batchnorm=true") == {"trainer.sync_batchnorm": "inexact"}


def test_layer_decay_makes_other_groups_of_parameters() -> None:
    assert kinds(saved(), "optimizer.layer_decay=0.8") == {"optimizer.layer_decay": "impossible"}
    assert kinds(saved("optimizer.layer_decay=0.7"), "optimizer.layer_decay=0.8") == {
        "optimizer.layer_decay": "inexact"
    }


def test_a_setting_younger_than_run_ids_changes_them_only_where_it_is_not_at_its_default() -> None:
    assert not any(YOUNGER.fullmatch(key) for key in identity(config_of()))
    assert identity(config_of("loss.name=bce")) == identity(config_of()) | {"loss.name": "bce"}


def test_the_run_id_in_the_readme_is_that_of_its_command() -> None:
    run = RunDirectory.of(load_config(["configs/experiment/digits.yaml"]).config)

    assert f"{run.run_id}: done" in (Path(__file__).parents[3] / "README.md").read_text(encoding="utf-8")


def test_refusals_name_every_setting_with_what_it_was_and_what_would_allow_it() -> None:
    found = changes(saved(), config_of("seed=3", "trainer.devices=4", "optimizer.opt=sgd", "optimizer.lr=0.5"))

    refused = refusals(found, run_id="mine", allow=False)
    assert [(problem.key, problem.received) for problem in refused] == [
        ("seed", "3"),
        ("optimizer.opt", '"sgd"'),
        ("optimizer.lr", "0.5"),
    ]
    assert refused[0].accepted == "0: what run mine was started with, or another run_id, or resume.allow_changes=true"
    assert "allow_changes" not in refused[1].accepted
    assert [problem.key for problem in refusals(found, run_id="mine", allow=True)] == ["optimizer.opt"]


def test_settings_of_the_loop_leave_run_ids_as_they_were_unless_they_round_gradients() -> None:
    plain, traced, rounded = (
        identity(config_of(*more)) for more in ([], ["trainer.profile_steps=[2,3]"], ["trainer.ddp_comm_hook=bf16"])
    )
    assert plain == traced
    assert not any("ddp_comm_hook" in key or "profile_steps" in key for key in plain)
    assert rounded == plain | {"trainer.ddp_comm_hook": "bf16"}
