import argparse
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.efficientnet import EfficientNet, _gen_efficientnet
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from configs.problems import ConfigError, DataError
from tests.unit.trainer.settings import settings
from trainer.network import build_network, check_name, image_size

SIZES_V1 = [f"b{number}" for number in range(9)]
NAMES = [
    *(f"{prefix}efficientnet_{size}" for prefix in ("", "tf_") for size in [*SIZES_V1, "l2"]),
    *(f"{prefix}efficientnet_lite{number}" for prefix in ("", "tf_") for number in range(5)),
    *(f"{prefix}efficientnetv2_{size}" for prefix in ("", "tf_") for size in ["s", "m", "l", "xl"]),
    *(f"tf_efficientnetv2_b{number}" for number in range(4)),
    *(f"efficientnetv2_rw_{size}" for size in "tsm"),
    "gc_efficientnetv2_rw_t",
]
# Millions of parameters as table 2 of the paper rounds them (Tan and Le, ICML 2019), and input sizes. It seems to
# count BatchNorm's statistics for B2 (9.18 with them, 9.11 without), and for B1 not (7.79 without, 7.86 with).
PAPER = {
    "efficientnet_b0": ("5.3", 224),
    "efficientnet_b1": ("7.8", 240),
    "efficientnet_b2": ("9.2", 260),
    "efficientnet_b3": ("12", 300),
    "efficientnet_b4": ("19", 380),
    "efficientnet_b5": ("30", 456),
    "efficientnet_b6": ("43", 528),
    "efficientnet_b7": ("66", 600),
}
TINY = {"model__name": "test_efficientnet", "data__num_classes": 4}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def statistics(network: nn.Module) -> int:
    return sum(buffer.numel() for buffer in network.buffers() if buffer.ndim)


def channels(network: Any) -> list[int]:
    stages = [stage[-1].feature_info("")["num_chs"] for stage in network.blocks]
    return [network.conv_stem.out_channels, *stages, network.num_features]


def refusal(**changes: object) -> tuple[str, str, str]:
    """Key, received and accepted of the one problem with a network."""
    with pytest.raises(ConfigError) as caught:
        build_network(settings(**changes))
    (problem,) = caught.value.problems
    return problem.key, problem.received, problem.accepted


@pytest.mark.parametrize("name", NAMES)
def test_every_efficientnet_of_timm_builds_with_its_published_size(name: str) -> None:
    config = settings(model__name=name)
    with torch.device("meta"):
        network = build_network(config)

    assert isinstance(network, EfficientNet)
    assert network.classifier.out_features == 1000
    assert network.drop_rate == config.model.drop_rate
    if name.removeprefix("tf_") in PAPER:
        millions, side = PAPER[name.removeprefix("tf_")]
        counted = parameters(network) + (statistics(network) if name.endswith("b2") else 0)
        assert f"{counted / 1e6:.{len(millions.partition('.')[2])}f}" == millions
        if name.startswith("tf_"):  # timm trained its own at other sizes
            assert image_size(config) == side


def test_b7_has_the_channels_and_repeats_of_the_paper() -> None:
    with torch.device("meta"):
        network: Any = build_network(settings(model__name="efficientnet_b7"))

    assert channels(network) == [64, 32, 48, 80, 160, 224, 384, 640, 2560]
    assert [len(stage) for stage in network.blocks] == [4, 7, 7, 10, 10, 13, 4]


@pytest.mark.parametrize(
    ("name", "close"),
    [
        ("resnet50", "efficientnet"),
        ("mobilenetv2_100", "efficientnet"),
        ("efficentnet_b3", "did you mean efficientnet_b3"),
        ("efficientnet_b9", "did you mean efficientnet_b"),
        ("tf_efficientnetv2_t", "tf_efficientnetv2_"),
        ("efficientnet_b0.ra4_e3600_r224", "did you mean efficientnet_b0.ra4_e3600_r224_in1k"),
        ("hf_hub:timm/efficientnet_b0", "efficientnet_b0"),
        ("efficientnet_b0/pruned", "efficientnet_b"),
    ],
)
def test_a_name_that_is_no_efficientnet_is_refused_with_close_ones(name: str, close: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_name(name)

    (problem,) = caught.value.problems
    assert (problem.key, problem.received) == ("model.name", f'"{name}"')
    assert "an EfficientNet of timm" in problem.accepted
    assert close in problem.accepted


def test_the_name_is_checked_before_the_data_needs_the_input_size() -> None:
    assert refusal(model__name="efficientnet_b9")[0] == "model.name"
    with pytest.raises(ConfigError, match=r"model\.name"):
        image_size(settings(model__name="efficientnet_b9"))


def test_a_name_may_carry_the_tag_of_published_weights() -> None:
    config = settings(model__name="efficientnet_b0.ra4_e3600_r224_in1k")
    with torch.device("meta"):
        assert isinstance(build_network(config), EfficientNet)
    assert image_size(config) == 224


def test_pretrained_is_refused_where_no_weights_are_published() -> None:
    key, received, accepted = refusal(model__name="efficientnet_b6", model__pretrained="true")

    assert (key, received) == ("model.pretrained", "true")
    assert "false for efficientnet_b6" in accepted
    assert "tf_efficientnet_b6" in accepted


@pytest.mark.parametrize("phi", [-3.0, 1.0, 2.0])
def test_compound_phi_scales_width_depth_and_resolution_by_the_formula(phi: float) -> None:
    config = settings(model__compound_phi=phi)
    with torch.device("meta"):
        network = build_network(config)
        expected = _gen_efficientnet("efficientnet_b0", channel_multiplier=1.1**phi, depth_multiplier=1.2**phi)

    assert {k: v.shape for k, v in network.state_dict().items()} == {
        k: v.shape for k, v in expected.state_dict().items()
    }
    assert image_size(config) == round(224 * 1.15**phi)


def test_phi_of_zero_is_b0() -> None:
    with torch.device("meta"):
        scaled, b0 = build_network(settings(model__compound_phi=0.0)), build_network(settings())

    assert str(scaled) == str(b0)


def rounded(channels: float) -> int:
    """The paper's reference: to a multiple of 8, of which at most a tenth is lost."""
    whole = max(8, int(channels + 4) // 8 * 8)
    return whole + 8 if whole < 0.9 * channels else whole


@pytest.mark.parametrize(("width", "depth"), [(0.5, 1.2), (1.3, 0.4), (0.33, 1.0)])
def test_explicit_multipliers_round_channels_and_repeats_as_the_paper_does(width: float, depth: float) -> None:
    config = settings(model__width_multiplier=width, model__depth_multiplier=depth)
    with torch.device("meta"):
        network: Any = build_network(config)

    assert channels(network) == [rounded(width * c) for c in (32, 16, 24, 40, 80, 112, 192, 320, 1280)]
    assert [len(stage) for stage in network.blocks] == [-(-depth * n // 1) for n in (1, 2, 2, 3, 3, 4, 1)]
    assert image_size(config) == 224


def test_half_the_width_and_more_depth_has_these_channels_and_repeats() -> None:
    with torch.device("meta"):
        network: Any = build_network(settings(model__width_multiplier=0.5, model__depth_multiplier=1.2))

    assert channels(network) == [16, 8, 16, 24, 40, 56, 96, 160, 640]
    assert [len(stage) for stage in network.blocks] == [2, 3, 3, 4, 4, 5, 2]


def test_one_multiplier_leaves_the_other_at_one() -> None:
    with torch.device("meta"):
        wide, deep = (
            build_network(settings(model__width_multiplier=2.0)),
            build_network(settings(model__depth_multiplier=2.0)),
        )

    assert channels(wide)[-1] == 2560
    assert [len(stage) for stage in wide.blocks] == [1, 2, 2, 3, 3, 4, 1]  # type: ignore[arg-type, union-attr]
    assert channels(deep)[-1] == 1280
    assert [len(stage) for stage in deep.blocks] == [2, 4, 4, 6, 6, 8, 2]  # type: ignore[arg-type, union-attr]


def test_the_transfer_head_is_a_hidden_layer_with_relu_before_the_classifier() -> None:
    torch.manual_seed(0)
    network: Any = build_network(settings(**TINY, model__head_hidden_features=1024))

    hidden, relu, last = network.classifier
    assert (hidden.in_features, hidden.out_features) == (network.num_features, 1024)
    assert isinstance(relu, nn.ReLU)
    assert (last.in_features, last.out_features) == (1024, 4)
    for layer in (hidden, last):
        bound = layer.in_features**-0.5  # torch's own initialisation: uniform within 1 / sqrt(fan in)
        assert 0.95 * bound < layer.weight.abs().max() <= bound
        assert abs(float(layer.weight.mean())) < 0.1 * bound
        assert 0 < layer.bias.abs().max() <= bound
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 4)


def test_initial_weights_depend_on_the_random_seed_alone() -> None:
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(build_network(settings(**TINY, model__head_hidden_features=16)).state_dict())
    first, second, third = networks

    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["conv_stem.weight"], third["conv_stem.weight"])
    assert not torch.equal(first["classifier.0.weight"], third["classifier.0.weight"])


@pytest.mark.parametrize("in_chans", [1, 4])
def test_the_network_takes_grey_images_and_ones_with_alpha(in_chans: int) -> None:
    network = build_network(settings(**TINY, model__in_chans=in_chans)).eval()

    assert network(torch.rand(2, in_chans, 64, 64)).shape == (2, 4)


def batchnorms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


@pytest.mark.parametrize("scaling", [{}, {"model__name": "efficientnet_b0", "model__compound_phi": -12}])
def test_bn_momentum_and_eps_reach_every_batchnorm(scaling: dict[str, object]) -> None:
    network = build_network(settings(**{**TINY, **scaling}, model__bn_momentum=0.01, model__bn_eps=1e-3))

    assert batchnorms(network)
    assert {(layer.momentum, layer.eps) for layer in batchnorms(network)} == {(0.01, 1e-3)}


@pytest.mark.parametrize(("name", "eps"), [("efficientnet_b0", 1e-5), ("tf_efficientnet_b0", 1e-3)])
def test_batchnorm_keeps_timms_momentum_and_eps_where_none_are_given(name: str, eps: float) -> None:
    with torch.device("meta"):
        network = build_network(settings(model__name=name))

    assert {(layer.momentum, layer.eps) for layer in batchnorms(network)} == {(0.1, eps)}


def test_bn_settings_are_refused_for_a_network_without_batchnorm() -> None:
    key, received, accepted = refusal(model__name="efficientnet_b0_gn", model__bn_momentum=0.01)

    assert (key, received) == ("model.bn_momentum", "0.01")
    assert "no BatchNorm" in accepted


def test_image_size_prefers_what_is_set() -> None:
    assert image_size(settings(model__name="tf_efficientnet_b3")) == 300
    assert image_size(settings(model__name="tf_efficientnet_b3", data__image_size=96)) == 96
    assert image_size(settings(model__compound_phi=1.0, data__image_size=96)) == 96
    assert image_size(settings(model__name="efficientnetv2_s")) == 288


# Weights to start from


def timm_weights(num_classes: int = 4, name: str = "test_efficientnet") -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    network = timm.create_model(name, num_classes=num_classes)
    return {key: torch.rand_like(v) if v.is_floating_point() else v + 5 for key, v in network.state_dict().items()}


def loaded(path: Path, **changes: object) -> Mapping[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_network(settings(**TINY, model__checkpoint_path=path, **changes)).state_dict()


def assert_same(loaded: Mapping[str, torch.Tensor], weights: Mapping[str, torch.Tensor]) -> None:
    assert loaded.keys() == weights.keys()
    assert all(torch.equal(loaded[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    "form",
    [
        lambda weights: weights,
        lambda weights: {"state_dict": weights, "epoch": 3, "arch": "test_efficientnet"},
        lambda weights: {"state_dict": {f"module.{key}": v for key, v in weights.items()}},
        lambda weights: {"state_dict": {}, "state_dict_ema": weights},
        lambda weights: {"state_dict": weights, "args": argparse.Namespace(lr=0.1)},  # timm's own training script
    ],
    ids=["weights", "checkpoint", "wrapped", "average", "with arguments"],
)
def test_a_timm_file_of_any_form_is_loaded(form: Any, tmp_path: Path) -> None:
    weights = timm_weights()
    torch.save(form(weights), tmp_path / "timm.pth")

    assert_same(loaded(tmp_path / "timm.pth"), weights)


def test_a_safetensors_file_is_loaded(tmp_path: Path) -> None:
    weights = timm_weights()
    save_file(weights, tmp_path / "model.safetensors")

    assert_same(loaded(tmp_path / "model.safetensors"), weights)


def test_an_old_file_without_counters_of_batches_is_loaded(tmp_path: Path) -> None:
    weights = {key: v for key, v in timm_weights().items() if "num_batches_tracked" not in key}
    torch.save(weights, tmp_path / "old.pth")

    assert torch.equal(loaded(tmp_path / "old.pth")["bn1.running_var"], weights["bn1.running_var"])


@pytest.mark.parametrize("head_hidden_features", [None, 16])
def test_a_classifier_of_another_shape_is_left_at_its_initial_values(
    head_hidden_features: int | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights = timm_weights(num_classes=10)
    torch.save(weights, tmp_path / "ten.pth")
    head = {"model__head_hidden_features": head_hidden_features}
    torch.manual_seed(0)
    initial = build_network(settings(**TINY, **head)).state_dict()

    with caplog.at_level(logging.WARNING, logger="effnet"):
        state = loaded(tmp_path / "ten.pth", **head)

    for key, tensor in state.items():
        assert torch.equal(tensor, (initial if key.startswith("classifier.") else weights)[key]), key
    assert "left at its initial values" in caplog.text


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    torch.save(timm_weights(name="test_efficientnet_gn"), tmp_path / "gn.pth")
    with pytest.raises(DataError, match=r"gn\.pth is of another network: missing \['bn1\.running_mean'"):
        loaded(tmp_path / "gn.pth")

    narrow = {key: v[:1] if key == "conv_stem.weight" else v for key, v in timm_weights().items()}
    torch.save(narrow, tmp_path / "narrow.pth")
    with pytest.raises(DataError, match=r"of another shape \['conv_stem\.weight'\]") as caught:
        loaded(tmp_path / "narrow.pth")
    assert "\n" not in str(caught.value)


def test_weights_for_other_channels_are_refused(tmp_path: Path) -> None:
    torch.save(timm_weights(), tmp_path / "rgb.pth")

    with pytest.raises(DataError, match=r"another shape \['conv_stem\.weight'\]"):
        loaded(tmp_path / "rgb.pth", model__in_chans=1)


def test_a_missing_file_of_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"model\.checkpoint_path .*absent\.pth is neither a file nor a folder"):
        loaded(tmp_path / "absent.pth")


class Payload:
    """Unpickling it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("new_zipfile", [True, False])
def test_code_in_a_file_of_weights_is_refused_and_not_run(new_zipfile: bool, tmp_path: Path) -> None:
    file, target = tmp_path / "evil.pth", tmp_path / "was-run"
    torch.save(
        {"state_dict": timm_weights(), "extra": Payload(target)}, file, _use_new_zipfile_serialization=new_zipfile
    )

    with pytest.raises(DataError, match=r"evil\.pth holds more than tensors .* code in it is not run"):
        loaded(file)
    assert not target.exists()
    torch.load(file, weights_only=False)
    assert target.exists(), "the payload works where it is let"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("text.pth", b"not a pickle at all"),
        ("text.safetensors", b"no tensors are in here"),
        ("cut.pth", b"PK\x03\x04 a zip file that ends early"),
    ],
)
def test_a_file_that_holds_no_weights_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)

    with pytest.raises(DataError, match=name):
        loaded(tmp_path / name)


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {}, {"state_dict": [torch.zeros(1)]}])
def test_a_file_of_something_else_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(DataError, match=r"other\.pth holds no weights"):
        loaded(tmp_path / "other.pth")


def test_weights_to_start_from_are_not_needed_where_a_checkpoint_is_restored(tmp_path: Path) -> None:
    config = settings(**TINY, model__checkpoint_path=tmp_path / "gone.pth")

    assert isinstance(build_network(config, restored=True), EfficientNet)


class _Copies(TorchDispatchMode):
    """Counts copies of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in (torch.ops.aten.clone.default, torch.ops.aten.copy_.default)
        return func(*args, **(kwargs or {}))


def gradients(network: nn.Module) -> tuple[list[torch.Tensor], int]:
    """Of a step on fixed images, and copies that its forward pass made."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 64, 64)
    with _Copies() as copies:
        logits = network.train()(images)
    logits.square().sum().backward()
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None], copies.count


@pytest.mark.parametrize("name", ["efficientnet_b0", "tf_efficientnetv2_b0", "tf_efficientnet_lite0"])
def test_activations_copy_nothing_and_gradients_are_timms_to_the_bit(name: str) -> None:
    ours = build_network(settings(model__name=name, model__drop_rate=0, model__drop_path_rate=0))
    timms = timm.create_model(name)
    timms.load_state_dict(ours.state_dict())

    (found, copies), (expected, timms_copies) = gradients(ours), gradients(timms)

    assert copies == 0
    assert timms_copies > 0
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected))
