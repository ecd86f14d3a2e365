"""Stages of progressive learning: what is refused, and what each stage's configuration is."""

import pytest

from configs.changes import changes, identity
from configs.progressive import stage_configs
from tests.unit.configs.loading import config_of, problems_of

CASES = [
    ("[{until_epoch: 90}]", "until_epoch alone", "what differs in it: image_size, auto_augment, mixup_alpha"),
    ("[{until_epoch: 351, image_size: 128}]", "until_epoch: 351", "at most trainer.max_epochs = 350"),
    ("[{until_epoch: 1, drop_rate: 0.2}]", "drop_rate: 0.2", "another value than model.drop_rate has"),
    ("[{until_epoch: 1, cutmix_alpha: 0.0}]", "cutmix_alpha: 0.0", "another value than loss.cutmix_alpha has"),
]


@pytest.mark.parametrize(("stages", "received", "accepted"), CASES, ids=[case[1] for case in CASES])
def test_a_stage_that_cannot_be_or_changes_nothing_is_refused(stages: str, received: str, accepted: str) -> None:
    (problem,) = problems_of(f"progressive.stages={stages}").values()

    assert (problem.key, problem.received) == ("progressive.stages[0]", received)
    assert accepted in problem.accepted


@pytest.mark.parametrize("second", [10, 9])
def test_stages_that_overlap_are_refused(second: int) -> None:
    (problem,) = problems_of(
        f"progressive.stages=[{{until_epoch: 10, image_size: 64}}, {{until_epoch: {second}, image_size: 96}}]"
    ).values()

    assert (problem.key, problem.received) == ("progressive.stages[1]", f"until_epoch: {second}")
    assert "more than 10, where the stage before it ends" in problem.accepted


@pytest.mark.parametrize(
    "stage",
    [
        "{until_epoch: 1, image_size: 31}",
        "{until_epoch: 0, image_size: 64}",
        "{until_epoch: 1.5, image_size: 64}",
        "{until_epoch: 1, auto_augment: random}",
        "{until_epoch: 1, drop_rate: 1.5}",
        "{until_epoch: 1, mixup_alpha: -0.1}",
        "{until_epoch: 1, size: 64}",
        "{image_size: 64}",
    ],
)
def test_a_value_that_is_none_is_refused(stage: str) -> None:
    (problem,) = problems_of(f"progressive.stages=[{stage}]").values()

    assert problem.key.startswith("progressive.stages")


def test_what_does_not_go_together_is_refused_in_a_stage_too() -> None:
    (problem,) = problems_of(
        "data.micro_batch_size=1", "progressive.stages=[{until_epoch: 1, mixup_alpha: 0.2, image_size: 64}]"
    ).values()

    assert (problem.key, problem.received) == ("progressive.stages[0]", "data.micro_batch_size = 1")
    assert problem.accepted == "an even number: Mixup and CutMix mix pairs"


def test_a_stage_is_the_run_but_for_what_differs() -> None:
    config = config_of(
        "progressive.stages=[{until_epoch: 5, image_size: 128, auto_augment: rand-m5},"
        " {until_epoch: 9, drop_rate: 0.1}]"
    )

    first, second, last = stage_configs(config)

    assert last == config
    assert [each.data.image_size for each in (first, second, last)] == [128, None, None]
    assert [each.data.augmentation.auto_augment for each in (first, second, last)] == ["rand-m5", None, None]
    assert [each.model.drop_rate for each in (first, second, last)] == [0.2, 0.1, 0.2]
    assert second.data == config.data


def test_stages_are_part_of_the_experiment_and_an_evaluation_size_may_change() -> None:
    plain, staged = config_of(), config_of("progressive.stages=[{until_epoch: 5, image_size: 128}]")

    assert identity(plain) != identity(staged)
    assert not any(key.startswith("progressive") for key in identity(plain))
    (change,) = changes(plain.model_dump(mode="json"), staged)
    assert (change.key, change.kind) == ("progressive.stages", "inexact")
    (change,) = changes(plain.model_dump(mode="json"), config_of("data.eval_image_size=320"))
    assert (change.key, change.kind) == ("data.eval_image_size", "harmless")
