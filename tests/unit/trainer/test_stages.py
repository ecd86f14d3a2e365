"""A network by its stages: B0's give B0, and any others train, are exported and read again."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from tests.unit.configs.loading import problems_of
from tests.unit.trainer.runs import as_killed_after, average, changed, new_run, train, weights
from tests.unit.trainer.settings import settings
from tests.unit.trainer.test_export import exported, images, ours, theirs
from trainer.network import build_network

Overrides = Callable[..., list[str]]
# Table 1 of the paper (Tan and Le, ICML 2019).
B0 = [
    {"block": "ds", "channels": 16},
    {"channels": 24, "repeats": 2, "stride": 2},
    {"channels": 40, "repeats": 2, "stride": 2, "kernel_size": 5},
    {"channels": 80, "repeats": 3, "stride": 2},
    {"channels": 112, "repeats": 3, "kernel_size": 5},
    {"channels": 192, "repeats": 4, "stride": 2, "kernel_size": 5},
    {"channels": 320},
]
SMALL = [
    {"block": "cn", "channels": 8, "se_ratio": 0.25},
    {"block": "er", "channels": 16, "stride": 2, "expansion": 2.0, "se_ratio": 0.0},
    {"block": "ir", "channels": 24, "repeats": 2, "stride": 2, "kernel_size": 5, "expansion": 3.0, "se_ratio": 0.5},
    {"block": "ds", "channels": 32, "kernel_size": 7},
]


def network(stages: list[dict[str, object]], **changes: object) -> nn.Module:
    torch.manual_seed(0)
    return build_network(settings(model__stages=json.dumps(stages), data__num_classes=10, **changes))


@pytest.mark.parametrize("phi", [None, 1.0, -3.0])
def test_the_stages_of_the_paper_are_efficientnet_b0_weight_for_weight(phi: float | None) -> None:
    by_stages = network(B0, model__compound_phi=phi)
    torch.manual_seed(0)
    by_name = build_network(settings(data__num_classes=10, model__compound_phi=phi))

    assert not changed(by_name.state_dict(), by_stages.state_dict())
    assert str(by_stages) == str(by_name)


def test_they_are_timms_b0_too() -> None:
    by_stages = network(B0).eval()
    timms = timm.create_model("efficientnet_b0", num_classes=10).eval()
    timms.load_state_dict(by_stages.state_dict())

    with torch.no_grad():
        assert torch.equal(timms(images()), by_stages(images()))


def test_each_stage_has_its_blocks_kernels_channels_and_squeeze() -> None:
    built = network(SMALL)
    first, fused, inverted, separable = built.blocks

    assert [len(stage) for stage in built.blocks] == [1, 1, 2, 1]
    assert (first[0].conv.out_channels, fused[0].conv_exp.out_channels) == (8, 16)
    assert fused[0].conv_exp.stride == (2, 2)
    assert [block.conv_dw.kernel_size for block in inverted] == [(5, 5), (5, 5)]
    assert [block.conv_dw.stride for block in inverted] == [(2, 2), (1, 1)]
    assert inverted[1].conv_pw.out_channels == 72
    assert inverted[1].se.conv_reduce.out_channels == 12
    assert separable[0].conv_dw.kernel_size == (7, 7)
    assert isinstance(fused[0].se, nn.Identity)


def test_a_run_of_other_stages_resumes_and_is_exported(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(
        model__stages=json.dumps(SMALL),
        model__compound_phi=None,
        model__width_multiplier=2.0,
        model__head_hidden_features=8,
        trainer__max_steps=3,
        checkpoint__every_n_steps=1,
    )
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=1), attempt=1)
    _, lines = exported(run, tmp_path / "export")

    assert not changed(weights(run, 3), weights(resumed, 3))
    expected = ours(run, average(run, 3), images())
    torch.testing.assert_close(theirs(lines[1:], images()), expected, atol=1e-5, rtol=1e-5)


def stages(*given: dict[str, object]) -> str:
    return f"model.stages={json.dumps(given)}"


@pytest.mark.parametrize(
    ("overrides", "key", "accepted"),
    [
        ((stages({"channels": 20}),), "model.stages[0]", "a multiple of 8: timm rounds to it"),
        (
            (stages({"channels": 8}, {"channels": 8, "block": "ds", "expansion": 2.0}),),
            "model.stages[1].expansion",
            "no expansion: it has an effect with block = ir or er only",
        ),
        (
            (stages({"channels": 8, "block": "cn", "se_ratio": 0.5}),),
            "model.stages[0].se_ratio",
            "no se_ratio: it has an effect with block = ir or er or ds only",
        ),
        (
            (stages({"channels": 8}), "model.name=efficientnet_b1"),
            "model.name",
            "efficientnet_b0: model.stages take the place of its",
        ),
        (
            (stages({"channels": 8}), "model.pretrained=true"),
            "model.pretrained",
            "false: no weights are published for such stages",
        ),
    ],
)
def test_stages_that_cannot_be_built_are_refused(overrides: tuple[str, ...], key: str, accepted: str) -> None:
    problems = problems_of(*overrides)

    assert list(problems) == [key]
    assert problems[key].accepted == accepted


@pytest.mark.parametrize("faulty", [{"channels": 8, "kernel_size": 4}, {"channels": 8, "stride": 3}, {"repeats": 2}])
def test_a_stage_that_is_none_is_refused_with_what_one_has(faulty: dict[str, object]) -> None:
    problems = problems_of(stages({"channels": 8}, faulty))

    assert list(problems) == ["model.stages"]
    assert "a section of the keys block, channels, repeats, kernel_size, stride" in problems["model.stages"].accepted
