"""``effnet plan`` as a user gives it."""

import json
from pathlib import Path

import pytest

from configs.changes import identity
from configs.exit_codes import EXIT_DO_NOT_RETRY
from configs.load import load_config
from configs.run import RunDirectory
from tests.unit.launch.commands import MINIMAL, effnet

B7 = ["--config", "configs/experiment/b7_imagenet.yaml", "--config", "configs/hardware/1x8_h100.yaml"]
DIGITS = ["--config", "configs/experiment/digits.yaml"]


def test_the_plan_of_the_largest_network_takes_no_gpu_and_none_of_its_memory(tmp_path: Path) -> None:
    done = effnet("plan", *B7, "--json", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    plan = json.loads(done.stdout)
    assert plan["network"]["parameters"] == 66_347_960
    assert plan["memory"]["total"] == pytest.approx(33.4e9, rel=0.02)
    assert plan["memory"]["fits"] is True
    assert (plan["devices"], plan["samples"]["training"]) == (8, 1_281_167)
    assert plan["totals"]["steps"] == -(-350 * 1_281_167 // 2048)
    assert plan["duration"]["bottleneck"] == "device"
    assert plan["duration"]["device_hours"] > 100
    assert not list(tmp_path.iterdir())


def test_without_hardware_there_is_no_time_and_a_hint(tmp_path: Path) -> None:
    done = effnet("plan", *DIGITS, "trainer.devices=2", "trainer.max_steps=123", cwd=tmp_path)

    assert (done.returncode, done.stderr) == (0, "")
    cells = [" ".join(line.replace("│", " ").split()) for line in done.stdout.splitlines()]
    assert "optimizer steps 123" in cells
    assert "time: launch.hardware describes no device; a file of configs/hardware does" in cells


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*MINIMAL, "trainer.max_epoch=5"], "did you mean trainer.max_epochs?"),
        ([*MINIMAL, "trainer.num_nodes=2"], "a number: what the nodes have cannot be seen from here"),
        ([*MINIMAL, "trainer.devices=1", "--samples=9", "model.name=efficientnet_b9"], "an EfficientNet of timm"),
        (
            [*MINIMAL, "trainer.devices=3", "--samples=9"],
            "a multiple of micro_batch_size x devices x num_nodes = 64 x 3 x 1 = 192",
        ),
    ],
)
def test_a_mistake_ends_it_with_93(arguments: list[str], says: str, tmp_path: Path) -> None:
    done = effnet("plan", *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")

    assert done.returncode == EXIT_DO_NOT_RETRY
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_what_hardware_can_do_is_no_part_of_a_runs_identity() -> None:
    plain = load_config(["experiment/digits.yaml"]).config
    described = load_config(["experiment/digits.yaml"], ["launch.hardware.device=mine"]).config

    assert identity(plain) == identity(described)
    assert RunDirectory.of(described).run_id == "digits-2c9722ba"
