"""A whole plan, as tables and as an object."""

import io
import json
from typing import Any

import pytest
from rich.console import Console

from configs.load import load_config
from configs.problems import ConfigError
from configs.schema import Config
from trainer.planning.plan import Plan, as_json, make_plan
from trainer.planning.tables import show_plan


def config(*overrides: str) -> Config:
    return load_config(["experiment/digits.yaml", "hardware/cpu.yaml"], ["runs_dir=runs", *overrides]).config


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(config(), devices=2)


def test_an_object_of_json_has_every_figure(plan: Plan) -> None:
    tree: dict[str, Any] = json.loads(json.dumps(as_json(plan)))

    (stage,) = tree["stages"]
    assert (tree["totals"]["steps"], tree["devices"], tree["accumulate_grad_batches"]) == (360, 2, 1)  # 16 x 1,438 / 64
    assert tree["memory"]["fits"] is True
    assert tree["traffic"]["total_bytes"] == plan.traffic.total_bytes > 0
    assert set(stage["time"]["speed"]["limits"]) == {"device", "network", "cpus"}
    assert stage["time"]["device"]["bound_by"] in ("memory bandwidth", "arithmetic", "starting operations")


def test_tables_say_what_the_object_says(plan: Plan) -> None:
    text = io.StringIO()
    show_plan(plan, Console(file=text, width=120))

    cells = [" ".join(line.replace("│", " ").split()) for line in text.getvalue().splitlines()]
    assert f"parameters {plan.network.parameters / 1e6:.2f} M" in cells
    assert f"total {plan.memory.total / 1e6:.1f} MB" in cells
    assert f"optimizer steps {plan.totals.steps}" in cells
    assert plan.duration is not None
    assert plan.stages[0].time is not None
    assert f"images/s {plan.stages[0].time.speed.images_per_s:,.0f}" in cells
    assert any(cell.startswith(f"bottleneck: {plan.duration.bottleneck}: ") for cell in cells)


def test_what_does_not_fit_is_said(plan: Plan) -> None:
    small = make_plan(config("launch.hardware.memory_gb=0.01"), devices=2)
    text = io.StringIO()
    show_plan(small, Console(file=text, width=120))

    assert "does not fit: data.micro_batch_size=32 needs" in text.getvalue()
    assert "; 4 fits" in text.getvalue()


def test_a_batch_that_cannot_be_dealt_to_the_devices_is_refused() -> None:
    with pytest.raises(ConfigError, match="cannot be dealt to 3 ranks"):
        make_plan(config(), devices=3)
