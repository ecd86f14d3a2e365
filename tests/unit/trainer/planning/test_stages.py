"""Stages of training: their steps, their memory and time, and what they add up to."""

import io
from functools import cache

import pytest
from rich.console import Console

from configs.load import load_config
from configs.schema import Config
from trainer.planning.plan import Plan, make_plan
from trainer.planning.stages import training_stages
from trainer.planning.tables import show_plan

TWO = "progressive.stages=[{until_epoch: 3, image_size: 32}, {until_epoch: 7, image_size: 48}]"


def config(*overrides: str) -> Config:
    files = ["experiment/digits.yaml", "hardware/cpu.yaml"]
    return load_config(files, ["runs_dir=runs", "data.image_size=64", "trainer.max_epochs=10", *overrides]).config


@cache
def planned(*overrides: str, samples: int = 1_000) -> Plan:
    return make_plan(config(*overrides), devices=1, samples=samples)


def test_a_step_is_in_the_stage_that_training_has_it_in() -> None:
    stages = training_stages(config(TWO, "model.freeze_backbone_epochs=2"), samples=1_000)
    expected = [(0, 2, 32, True), (2, 3, 32, False), (3, 7, 48, False), (7, 10, 64, False)]

    assert [(s.first_epoch, s.until_epoch, s.image_size, s.frozen) for s in stages] == expected
    step, batch = 0, config().data.global_batch_size
    for stage in stages:
        for each in (step, step + stage.steps - 1):
            assert stage.first_epoch <= each * batch // 1_000 < stage.until_epoch
        step += stage.steps
    assert step == -(-10 * 1_000 // batch)


def test_a_run_that_ends_early_has_no_later_stages() -> None:
    stages = training_stages(config(TWO, "trainer.max_steps=50"), samples=1_000)

    assert [stage.steps for stage in stages] == [47, 3]


def test_memory_is_that_of_the_heaviest_stage_and_time_that_of_all() -> None:
    plan, alone = planned(TWO), {size: planned(f"data.image_size={size}") for size in (32, 48, 64)}

    assert [row.stage.image_size for row in plan.stages] == [32, 48, 64]
    assert plan.heaviest == 2
    assert plan.memory.activations == alone[64].memory.activations == plan.stages[2].activations
    for row in plan.stages:
        (same,) = alone[row.stage.image_size].stages
        assert (row.macs, row.activations) == (same.macs, same.activations)
        assert row.time is not None
        assert same.time is not None
        assert row.time.speed == same.time.speed
        assert row.time.hours / row.stage.steps == pytest.approx(same.time.hours / same.stage.steps)
    assert plan.duration is not None
    assert plan.duration.training_hours == pytest.approx(sum(row.time.hours for row in plan.stages if row.time))
    assert plan.totals.steps == sum(row.stage.steps for row in plan.stages) == alone[64].totals.steps


def test_a_large_first_stage_is_the_heaviest() -> None:
    plan = planned("progressive.stages=[{until_epoch: 1, image_size: 96}]")

    assert plan.heaviest == 0
    assert plan.network.image_size == 96
    assert plan.memory.activations == plan.stages[0].activations > plan.stages[1].activations


def test_each_stage_has_its_own_bottleneck_and_the_run_that_of_most_of_its_time() -> None:
    fed = ("launch.hardware.storage_gb_per_s=0.001", "trainer.accelerator=cuda", "trainer.devices=1")
    speeds = [row.time.speed.limits for row in planned(TWO, *fed).stages if row.time]
    between = (speeds[0]["device"] * speeds[2]["device"]) ** 0.5 / speeds[0]["storage"] * 0.001

    plan = planned(TWO, f"launch.hardware.storage_gb_per_s={between}", *fed[1:])

    times = [row.time for row in plan.stages if row.time]
    assert times[0].speed.bottleneck == "storage"
    assert times[2].speed.bottleneck == "device"
    assert plan.duration is not None
    hours = {part: sum(t.hours for t in times if t.speed.bottleneck == part) for part in ("storage", "device")}
    assert plan.duration.bottleneck == max(hours, key=lambda part: hours[part])


def test_epochs_of_the_head_alone_cost_less() -> None:
    plan = planned("model.freeze_backbone_epochs=4")
    frozen, rest = plan.stages
    assert frozen.time is not None
    assert rest.time is not None

    assert frozen.activations < rest.activations / 2
    assert frozen.time.device.micro_batch_s < rest.time.device.micro_batch_s / 2
    assert frozen.macs == rest.macs


def test_evaluation_has_its_own_images_and_both_sets_of_weights() -> None:
    plain, larger = planned(), planned("data.eval_image_size=128", "data.eval_batch_size=64")
    single = planned("ema.enabled=false")

    assert larger.evaluation.macs == pytest.approx(4 * plain.evaluation.macs, rel=0.05)
    assert (plain.evaluation.sets_of_weights, single.evaluation.sets_of_weights) == (2, 1)
    assert plain.evaluation.batch_s is not None
    assert single.evaluation.batch_s is not None
    assert plain.evaluation.batch_s == pytest.approx(2 * single.evaluation.batch_s)


def test_an_evaluation_without_room_is_said() -> None:
    room = planned().memory.total * 1.3 / 0.95 / 2**30
    plan = planned("data.eval_batch_size=4096", f"launch.hardware.memory_gb={room}")
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=120))

    assert plan.memory.total - plan.memory.evaluation == planned().memory.total - planned().memory.activations
    assert "does not fit: data.eval_batch_size=4096 needs" in text.getvalue()


def test_a_row_for_each_stage_fits_80_columns() -> None:
    text = io.StringIO()
    show_plan(planned(TWO), Console(file=text, width=80))

    assert "…" not in text.getvalue()
    cells = [" ".join(line.replace("│", " ").split()) for line in text.getvalue().splitlines()]
    for row in planned(TWO).stages:
        assert row.time is not None
        start = f"{row.stage.first_epoch} to {row.stage.until_epoch} {row.stage.image_size} {row.stage.steps}"
        end = f"{row.time.hours:.2f} {row.time.speed.bottleneck}"
        assert any(cell.startswith(start) and cell.endswith(end) for cell in cells)


def test_what_is_read_is_each_sample_of_each_epoch() -> None:
    plan = planned()
    seen = plan.totals.steps * config().data.global_batch_size

    assert plan.totals.validations == 10
    read = (seen + 10 * plan.samples.validation) * plan.samples.bytes_each
    assert plan.totals.read_bytes == pytest.approx(read)
