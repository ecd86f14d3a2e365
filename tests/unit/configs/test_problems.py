"""What a user reads about a faulty configuration: everything at once, and nothing that only follows from the rest."""

from pathlib import Path

import pytest

from configs.load import load_config
from configs.problems import ConfigError, shown
from tests.unit.configs.loading import MINIMAL, problems_of


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(
        "data:\n"
        "  globl_batch_size: 512\n"
        "  global_batch_size: 100\n"
        "  micro_batch_size: 10\n"
        "  num_lanes: 10\n"
        "optimizer:\n"
        "  lr: fast\n"
        "trainer:\n"
        "  accelerator: cpu\n"
        "  precision: 16-mixed\n"
        "  devices: 3\n"
        "  strategy: ddp\n"
    )

    problems = problems_of("deepspeed.zero_stage=2", files=[file])

    assert {key: (p.received, p.accepted, p.origin) for key, p in problems.items()} == {
        "data.globl_batch_size": ("512", "no such key; did you mean data.global_batch_size?", "run.yaml:2"),
        "optimizer.lr": ('"fast"', "a finite number above 0", "run.yaml:7"),
        "data.global_batch_size": (
            "100",
            "a multiple of micro_batch_size x devices x num_nodes = 10 x 3 x 1 = 30",
            "run.yaml:3",
        ),
        "trainer.precision": ('"16-mixed"', "32-true or bf16-mixed on the CPU", "run.yaml:10"),
        "deepspeed.zero_stage": ("2", "null with trainer.strategy = ddp", "command line"),
    }


def test_the_message_holds_count_key_origin_received_and_accepted() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config([], [*MINIMAL, "seed=x", "sed=1"])

    assert str(caught.value) == (
        "configuration: 2 problems\n"
        "  seed  (command line)\n"
        '      received  "x"\n'
        "      accepted  a whole number at least 0\n"
        "  sed  (command line)\n"
        "      received  1\n"
        "      accepted  no such key; did you mean seed?"
    )


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("modle.name", "model"),
        ("trainer.max_epoch", "trainer.max_epochs"),
        ("lr", "optimizer.lr"),
        ("max_epochs", "trainer.max_epochs"),
        ("data.hflip", "data.augmentation.hflip"),
        ("model.lr", "optimizer.lr"),
        ("data.augmentation.auto_aug", "data.augmentation.auto_augment"),
        ("Seed", "seed"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_right_one(misspelt: str, meant: str) -> None:
    (problem,) = problems_of(f"{misspelt}=1").values()

    assert problem.accepted == f"no such key; did you mean {meant}?"
    assert problem.origin == "command line"


def test_a_key_like_no_other_is_answered_with_those_that_exist() -> None:
    assert problems_of("ema.xyzzyplugh=1")["ema.xyzzyplugh"].accepted == "one of enabled, decay, use_warmup"


def test_nothing_at_all_is_answered_with_a_recipe() -> None:
    with pytest.raises(ConfigError, match=r"--config configs/experiment/digits\.yaml"):
        load_config()


def test_missing_settings_are_named_one_by_one() -> None:
    problems = problems_of("seed=1", minimal=False)

    assert list(problems) == ["data.train_shards", "data.val_shards"]
    for problem in problems.values():
        assert problem.received == "nothing"
        assert problem.accepted == "text, or a list, each text: it has no default"


def test_combinations_are_checked_beside_missing_and_faulty_settings() -> None:
    faulty = ("data=5", "optimizer.kwargs.eps=null", "model.mean=1", "trainer.accelerator=cpu")

    assert "trainer.precision" in problems_of("trainer.precision=16-mixed", *faulty)
    assert "trainer.precision" in problems_of("trainer.precision=16-mixed", *faulty[1:], minimal=False)


@pytest.mark.parametrize(
    "overrides",
    [
        ("data.global_batch_size=big", "data.micro_batch_size=100"),
        ("data.global_batch_size=300", "data.micro_batch_size=big", "data.num_lanes=10"),
        ("data.globalbatch_size=300", "data.micro_batch_size=100", "data.num_lanes=10"),
        ("trainer.max_epochs=many", "model.freeze_backbone_epochs=400", "scheduler.warmup_epochs=500"),
        ("trainer.strategy=zero", "deepspeed.zero_stage=2"),
    ],
)
def test_what_only_follows_from_a_faulty_value_is_not_reported(overrides: tuple[str, ...]) -> None:
    assert len(problems_of(*overrides)) == 1


def test_a_misspelt_key_beside_the_right_one_hides_nothing() -> None:
    problems = problems_of("data.globalbatch_size=300", "data.global_batch_size=300", "data.micro_batch_size=100")

    assert list(problems) == ["data.globalbatch_size", "data.num_lanes"]


@pytest.mark.parametrize(
    ("value", "text"), [(None, "null"), (True, "true"), ("a", '"a"'), ((1, 2.5), "[1, 2.5]"), ("é", '"é"')]
)
def test_values_are_shown_the_way_they_are_written(value: object, text: str) -> None:
    assert shown(value) == text
