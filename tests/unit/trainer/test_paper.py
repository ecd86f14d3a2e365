"""B0 to B7 beside the tables of Tan and Le, ICML 2019 (arXiv 1905.11946): no image is computed."""

from typing import Any

import pytest
import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.flop_counter import FlopCounterMode

from tests.unit.trainer.settings import settings
from trainer.network import build_network

# Table 1 and the published multipliers of width and depth give these channels (stem, seven stages, head) and repeats;
# table 2 has millions of parameters and billions of multiply-adds. It seems to count BatchNorm's statistics for B2.
PAPER: dict[str, tuple[int, list[int], list[int], str, float]] = {
    "b0": (224, [32, 16, 24, 40, 80, 112, 192, 320, 1280], [1, 2, 2, 3, 3, 4, 1], "5.3", 0.39),
    "b1": (240, [32, 16, 24, 40, 80, 112, 192, 320, 1280], [2, 3, 3, 4, 4, 5, 2], "7.8", 0.70),
    "b2": (260, [32, 16, 24, 48, 88, 120, 208, 352, 1408], [2, 3, 3, 4, 4, 5, 2], "9.2", 1.0),
    "b3": (300, [40, 24, 32, 48, 96, 136, 232, 384, 1536], [2, 3, 3, 5, 5, 6, 2], "12", 1.8),
    "b4": (380, [48, 24, 32, 56, 112, 160, 272, 448, 1792], [2, 4, 4, 6, 6, 8, 2], "19", 4.2),
    "b5": (456, [48, 24, 40, 64, 128, 176, 304, 512, 2048], [3, 5, 5, 7, 7, 9, 3], "30", 9.9),
    "b6": (528, [56, 32, 40, 72, 144, 200, 344, 576, 2304], [3, 6, 6, 8, 8, 11, 3], "43", 19),
    "b7": (600, [64, 32, 48, 80, 160, 224, 384, 640, 2560], [4, 7, 7, 10, 10, 13, 4], "66", 37),
}
KERNELS, STRIDES, EXPANSIONS = [3, 3, 5, 3, 5, 5, 3], [1, 2, 2, 2, 1, 2, 1], [1, 6, 6, 6, 6, 6, 6]


def multiply_adds(side: int, channels: list[int], repeats: list[int]) -> int:
    """Of one image, by table 1: MBConv blocks with squeeze-and-excitation to a quarter of a block's input."""
    stem, *stages, head = channels
    side = -(-side // 2)
    total, before = 9 * 3 * stem * side**2, stem
    for kernel, stride, expansion, after, count in zip(KERNELS, STRIDES, EXPANSIONS, stages, repeats, strict=True):
        for block in range(count):
            inner, squeezed = before * expansion, before // 4
            total += before * inner * side**2 if expansion > 1 else 0
            side = -(-side // stride) if not block else side
            total += kernel**2 * inner * side**2 + 2 * inner * squeezed + inner * after * side**2
            before = after
    return total + before * head * side**2 + head * 1000


def on_meta(name: str, side: int, **changes: object) -> tuple[Any, int]:
    """A network without memory for its weights, and its multiply-adds of one image as PyTorch counts them."""
    with torch.device("meta"):
        network: Any = build_network(settings(model__name=name, **changes)).eval()
        image = torch.empty(1, 3, side, side)
    with FlopCounterMode(display=False) as counter:
        network(image)
    return network, counter.get_total_flops() // 2


@pytest.mark.parametrize("prefix", ["", "tf_"])
@pytest.mark.parametrize("size", PAPER)
def test_sizes_are_those_of_the_paper(size: str, prefix: str) -> None:
    side, channels, repeats, millions, billions = PAPER[size]

    network, counted = on_meta(f"{prefix}efficientnet_{size}", side)

    stages = [stage[-1].feature_info("")["num_chs"] for stage in network.blocks]
    assert [network.conv_stem.out_channels, *stages, network.num_features] == channels
    assert [len(stage) for stage in network.blocks] == repeats
    parameters = sum(parameter.numel() for parameter in network.parameters())
    if size == "b2":
        parameters += sum(buffer.numel() for buffer in network.buffers() if buffer.ndim)
    assert f"{parameters / 1e6:.{len(millions.partition('.')[2])}f}" == millions
    assert counted == multiply_adds(side, channels, repeats)
    # Table 2 rounds, and differs from table 1 by more than that for B1, B4 and B5 (0.69, 4.4 and 10.3).
    assert counted / 1e9 == pytest.approx(billions, rel=0.05)


def test_googles_b0_has_googles_batchnorm() -> None:
    """TensorFlow's momentum of .99 is PyTorch's .01; epsilon is timm's own for the name."""
    network, _ = on_meta("tf_efficientnet_b0", 224, model__bn_momentum=0.01)

    layers = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    assert {(layer.momentum, layer.eps) for layer in layers} == {(0.01, 1e-3)}
    assert len(layers) == 49
