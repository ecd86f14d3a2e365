"""What a run needs of a node."""

from collections.abc import Callable
from pathlib import Path

import pytest

from configs.load import load_config
from configs.schema import Config
from trainer.doctor.needs import checkpoint_bytes, images_per_second, room_bytes, shared_memory_bytes

Overrides = Callable[..., list[str]]
B0 = ["data.train_shards=t.tar", "data.val_shards=v.tar"]


def config(*overrides: str) -> Config:
    return load_config([], [*B0, *overrides]).config


def speed(config: Config, metrics_file: Path, *, gpu: str | None = "NVIDIA A100-SXM4-80GB") -> tuple[float, str] | None:
    return images_per_second(config, gpu=gpu, metrics_file=metrics_file, world_size=4)


def test_room_is_for_all_checkpoints_that_are_kept_and_the_one_that_is_written(tmp_path: Path) -> None:
    b0 = config("checkpoint.keep_last=2", "checkpoint.keep_best=null")

    assert checkpoint_bytes(b0) == pytest.approx(16 * 5.29e6, rel=0.01)  # parameters: Tan and Le, table 8
    assert room_bytes(b0, tmp_path) == 3 * checkpoint_bytes(b0)


def test_a_run_that_goes_on_needs_no_room_for_the_checkpoints_that_it_has(tmp_path: Path) -> None:
    b0 = config("checkpoint.keep_last=2", "checkpoint.keep_best=null")
    for count, name in ((2, "step-000000010"), (1, "step-000000020"), (1, "step-000000030")):
        (tmp_path / name).mkdir()
        (tmp_path / f".{name}.tmp").mkdir()
        assert room_bytes(b0, tmp_path) == count * checkpoint_bytes(b0)


def test_shared_memory_is_for_the_batches_of_all_loaders() -> None:
    settings = config("data.num_workers=3", "data.micro_batch_size=32", "data.prefetch_batches=4")

    assert shared_memory_bytes(settings, 2) == 2 * 3 * (4 + 2) * 32 * 3 * 224**2
    assert shared_memory_bytes(config("data.num_workers=0"), 2) == 0


def test_images_a_second_rest_on_the_setting_then_on_the_run_then_on_what_was_published(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.csv"
    assert speed(config(), metrics) == (2489.0, "published for A100")
    metrics.write_text("step,throughput/images_per_second\n1,7000\n2,8000\n3,\n")

    assert speed(config(), metrics) == (2000.0, "measured in this run before")
    set_to = config("doctor.images_per_s_per_device=1234")
    assert speed(set_to, metrics) == (1234.0, "doctor.images_per_s_per_device")


@pytest.mark.parametrize("last", ["4,1e", "4,nan", "4,inf", "4", "4,0"])
def test_a_line_of_metrics_that_was_cut_is_passed_over(tmp_path: Path, last: str) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(f"step,throughput/images_per_second\n1,8000\n{last}")
    assert speed(config(), metrics) == (2000.0, "measured in this run before")


@pytest.mark.parametrize(
    ("overrides", "gpu"),
    [
        ((), None),
        ((), "NVIDIA H100 80GB HBM3"),
        (("data.image_size=256",), "NVIDIA A100"),
        (("model.compound_phi=1",), "NVIDIA A100"),
    ],
)
def test_where_nothing_is_known_no_figure_is_made_up(
    overrides: tuple[str, ...], gpu: str | None, tmp_path: Path
) -> None:
    assert speed(config(*overrides), tmp_path / "none.csv", gpu=gpu) is None
