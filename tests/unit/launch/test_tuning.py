"""``effnet tune``: what is tried, and what is refused before anything starts."""

from pathlib import Path

import pytest

from configs.exit_codes import EXIT_DO_NOT_RETRY
from launch.tuning import candidates
from tests.unit.configs.loading import MINIMAL, config_of
from tests.unit.launch.commands import effnet

HERE = ["trainer.devices=1", "trainer.accelerator=cpu", "trainer.precision=32-true", "tracking.mode=disabled"]


def test_sizes_that_divide_a_devices_share_are_tried_and_those_that_are_no_setting_are_not() -> None:
    settings = ["data.global_batch_size=96", "data.micro_batch_size=12", "data.num_lanes=12", "loss.mixup_alpha=0.2"]
    sizes, refused = candidates(config_of(*settings), [], [*MINIMAL, *settings], world_size=8)

    assert sizes == [2, 4, 6, 12]
    assert set(refused) == {1, 3}
    assert "an even number: Mixup and CutMix mix pairs" in refused[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ["lr", *MINIMAL, *HERE, "trainer.max_epoch=5", "--steps=3", "--min-lr=1", "--max-lr=0.1", "--out=no/x.png"],
            ["4 problems", "--steps", "20 or more", "--min-lr, --max-lr", "--out", "did you mean trainer.max_epochs?"],
        ),
        (["lr", *MINIMAL, "trainer.num_nodes=2"], ["1: effnet tune lr trains on this machine"]),
        (["lr"], ["a recipe, such as --config configs/experiment/digits.yaml"]),
        (
            ["batch-size", *MINIMAL, *HERE, "seed=x", "--steps=0", "--min-size=0"],
            ["3 problems", "--steps", "--min-size, --max-size", "seed"],
        ),
        (["batch-size", *MINIMAL, *HERE, "trainer.devices=7"], ["a multiple of"]),
        (
            ["batch-size", *MINIMAL, *HERE, "trainer.strategy=deepspeed", "deepspeed.zero_stage=1"],
            ["auto, ddp or single: one device says little"],
        ),
        (["batch-size", *MINIMAL, "trainer.accelerator=cuda"], ["cpu or auto: no GPU is here"]),
        (
            ["batch-size", *MINIMAL, *HERE, "data.global_batch_size=64", "--min-size=5", "--max-size=7"],
            ["a range with a size that divides 64"],
        ),
    ],
)
def test_all_mistakes_end_it_with_93_and_nothing_on_disk(arguments: list[str], says: list[str], tmp_path: Path) -> None:
    done = effnet("tune", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")

    assert done.returncode == EXIT_DO_NOT_RETRY, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for text in says:
        assert text in done.stderr
    assert not list(tmp_path.iterdir())
