"""Settings of the network."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.section import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, Section


class Stage(Section):
    """Blocks of a network one after the other that have the same form."""

    block: Literal["ir", "er", "ds", "cn"] = "ir"
    """timm's names: `ir` is the inverted residual (MBConv), `er` the fused one of EfficientNetV2, `ds` a depthwise
    separable convolution, `cn` a plain one."""
    channels: PositiveInt
    """Channels that leave the stage, a multiple of 8."""
    repeats: PositiveInt = 1
    """Blocks; depth scaling multiplies them."""
    kernel_size: Literal[3, 5, 7, 9] = 3
    """Side of the convolution's window in pixels."""
    stride: Literal[1, 2] = 1
    """Of the first block: 2 halves the side of the image."""
    expansion: Annotated[float, Field(ge=1)] = 6.0
    """Channels within a block of `ir` or `er`, as a multiple of those that enter it. No effect on `ds` and `cn`."""
    se_ratio: Fraction = 0.25
    """Squeeze and excitation: its inner channels as a share of those that enter the block; 0 has none. No effect on
    `cn`."""


class Model(Section):
    """The network, built by timm."""

    name: Annotated[str, Field(pattern="^(tf_|test_|gc_)?efficientnet")] = "efficientnet_b0"
    """Any EfficientNet of timm: B0 to B8, L2, lite, V2, RW, tf_ variants."""
    compound_phi: Annotated[float, Field(ge=-20, le=20)] | None = None
    """Compound scaling of B0: depth 1.2^phi, width 1.1^phi, resolution 1.15^phi (Tan and Le, ICML 2019, section 4)."""
    width_multiplier: PositiveFloat | None = None
    """Explicit scaling of B0's channels."""
    depth_multiplier: PositiveFloat | None = None
    """Explicit scaling of B0's repeats."""
    stages: tuple[Stage, ...] = ()
    """Stages in place of B0's seven, between its stem of 32 channels and stride 2 and its head; [] are B0's. Scaling
    applies to them too."""
    pretrained: bool = False
    """Start from timm's published weights (downloaded)."""
    checkpoint_path: str | None = None
    """Start from a timm or safetensors file of weights, or from a run's or a checkpoint's directory: its averaged
    weights, or the raw ones where there is no average. A classifier of another size is left at its initial values."""
    in_chans: Literal[1, 3, 4] = 3
    """Channels of the input: 1 reads images as grey, 3 as RGB, 4 as RGBA."""
    drop_rate: Fraction = 0.2
    """Dropout before the classifier (B0: 0.2; B7: 0.5)."""
    drop_path_rate: Fraction = 0.2
    """Stochastic depth: drop probability of the last block, growing linearly from 0."""
    bn_momentum: Fraction | None = None
    """Share of a step's batch statistics in BatchNorm's running ones, in PyTorch's sense; None keeps timm's 0.1."""
    bn_eps: PositiveFloat | None = None
    """BatchNorm's epsilon; None keeps timm's (1e-5, tf_ variants 1e-3)."""
    head_hidden_features: PositiveInt | None = None
    """Width of a hidden layer with ReLU between pooling and classifier, as in transfer learning; None is none."""
    freeze_backbone_epochs: NonNegativeInt = 0
    """Epochs at the start in which only the head trains; the backbone's BatchNorm statistics stand still too."""
