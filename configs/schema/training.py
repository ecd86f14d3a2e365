"""Settings of training: loss, optimizer, schedule, averaged weights, devices, and what changes by stage."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.section import (
    AugmentationPolicy,
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
    ValidationMetric,
)


class Loss(Section):
    """timm's losses, and the mixing of samples that feeds them."""

    name: Literal["cross_entropy", "bce", "jsd"] = "cross_entropy"
    """`bce` is binary cross entropy of each class (Wightman et al., arXiv 2110.00476); `jsd` cross entropy of clean
    images plus the Jensen-Shannon divergence of their augmented views (AugMix, Hendrycks et al., arXiv 1912.02781)."""
    bce_target_thresh: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Targets above it become 1, all others 0: of mixed images both classes count (bce only). None leaves them."""
    bce_sum: bool = False
    """Sum the loss over the classes rather than take their mean (bce only)."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Probability mass spread evenly over all classes."""
    mixup_alpha: NonNegativeFloat = 0.0
    """Beta parameter of Mixup; 0 is off."""
    cutmix_alpha: NonNegativeFloat = 0.0
    """Beta parameter of CutMix; 0 is off."""
    mixup_prob: Fraction = 1.0
    """Probability that a micro-batch is mixed at all."""
    mixup_switch_prob: Fraction = 0.5
    """Probability of CutMix where both are on."""
    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """Whether one mixing ratio holds for a micro-batch, a pair or an element."""


class Distillation(Section):
    """A teacher whose logits the network learns beside the labels (Hinton et al., arXiv 1503.02531)."""

    teacher: str | None = None
    """Any model of timm by its name, of as many classes, or the directory of a run or of one of its checkpoints: its
    averaged weights, or the raw ones where there is no average. It sees what the network sees, normalised as it was
    trained, and resized where it takes images of a single size, as many transformers do. None is no teacher."""
    checkpoint_path: str | None = None
    """timm or safetensors file of a named teacher's weights; None takes timm's published ones (downloaded)."""
    alpha: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of the teacher's loss; the labels' has the rest."""
    temperature: PositiveFloat = 1.0
    """Divides the logits of both; the teacher's loss is multiplied by its square (soft only)."""
    kind: Literal["soft", "hard"] = "soft"
    """`soft` is the KL divergence from the teacher's probabilities, `hard` cross entropy with its answer (DeiT, Touvron
    et al., arXiv 2012.12877)."""


class ProgressiveStage(Section):
    """What differs from the settings of the whole run up to an epoch; None is as there."""

    until_epoch: PositiveInt
    """The first epoch, counted from 0, that is no longer in the stage. It begins where the one before it ends. A batch
    that spans two epochs belongs to the earlier."""
    image_size: Annotated[int, Field(ge=32)] | None = None
    """`data.image_size` in training; at least 32, of which a network makes one pixel. Evaluation keeps its own."""
    auto_augment: AugmentationPolicy | None = None
    """`data.augmentation.auto_augment`, such as another magnitude of RandAugment."""
    mixup_alpha: NonNegativeFloat | None = None
    """`loss.mixup_alpha`."""
    cutmix_alpha: NonNegativeFloat | None = None
    """`loss.cutmix_alpha`."""
    drop_rate: Fraction | None = None
    """`model.drop_rate`."""


class Progressive(Section):
    """Progressive learning: small images and little regularisation first (Tan and Le, EfficientNetV2, ICML 2021)."""

    stages: tuple[ProgressiveStage, ...] = ()
    """Stages, in order; after the last, the settings of the whole run hold. Few, since the first step at an image size
    takes longer: kernels are chosen or compiled for it."""


class Optimizer(Section):
    """timm's optimizers, by timm's names. BatchNorm parameters and biases are not decayed."""

    opt: str = "rmsproptf"
    """Name in timm.optim, such as sgd, rmsproptf, adamw, lamb, lion, muon."""
    lr: PositiveFloat = 0.016
    """Peak learning rate at this global batch size (Google's EfficientNet: 0.016 per 256 samples)."""
    weight_decay: NonNegativeFloat = 1e-5
    """Weight decay, in the optimizer's own sense (Google's EfficientNet: 1e-5)."""
    momentum: Fraction = 0.9
    """Momentum, where the optimizer has one."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Factor of the learning rate from each layer to the one before it, the head having `lr` (BEiT, arXiv 2106.08254):
    for fine-tuning. None has one rate for all."""
    kwargs: dict[str, bool | int | float | str | tuple[float, ...]] = {}
    """Further arguments of that optimizer, such as `eps`, `alpha`, `betas`; `{}` drops those of an earlier file."""


class Scheduler(Section):
    """timm's learning-rate schedules, advanced at each optimizer step."""

    sched: Literal["cosine", "tanh", "step", "multistep", "poly", "wsd", "rsqrt", "constant", "plateau"] = "cosine"
    """Shape after the warm-up. `plateau` lowers the rate when validation has stopped to improve (torch's
    ReduceLROnPlateau); all others are functions of the number of steps."""
    warmup_epochs: NonNegativeFloat = 5.0
    """Linear warm-up from warmup_lr, inside the total number of epochs."""
    warmup_lr: NonNegativeFloat = 1e-6
    """Learning rate at the first step of a warm-up."""
    min_lr: NonNegativeFloat = 0.0
    """Learning rate at the end (cosine, tanh, poly, wsd, rsqrt); the lowest (plateau)."""
    decay_epochs: PositiveFloat | None = None
    """Epochs between decays (step), or of the decay at the end, below 1 its share of what follows the warm-up (wsd,
    rsqrt; None is 0.2)."""
    decay_milestones: tuple[PositiveFloat, ...] = ()
    """Epochs at which the rate decays (multistep only)."""
    decay_rate: PositiveFloat | None = None
    """Factor of a decay (step, multistep, plateau), power (poly)."""
    monitor: ValidationMetric | None = None
    """Validation metric that plateau goes by; None is `val/ema_top1`, or `val/top1` where no average is kept."""
    patience_validations: NonNegativeInt = 10
    """Validations in a row without improvement that plateau lets pass before it decays."""
    kwargs: dict[str, int | float | str] = {}
    """Further arguments of that schedule: `cycle_mul`, `cycle_decay`, `cycle_limit` (cosine, tanh, poly), `k_decay`
    (cosine, poly), `decay_fn` (wsd, rsqrt), `stable_timescale` in epochs (rsqrt)."""


class Ema(Section):
    """Exponential moving average of the weights, kept in fp32 and evaluated beside the raw ones."""

    enabled: bool = True
    """Off: no average is kept."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.9999
    """Share of the old average kept at each optimizer step (Google's EfficientNet: 0.9999)."""
    use_warmup: bool = False
    """Grow the decay from 0 as 1 - (1 + step)^(-2/3) up to `decay`: for short runs."""


class Trainer(Section):
    """Settings of Lightning's Trainer, in Lightning's spelling."""

    accelerator: Literal["auto", "cpu", "cuda"] = "auto"
    """Kind of device; auto takes CUDA where there is one."""
    devices: PositiveInt | Literal["auto"] = "auto"
    """Devices per node; auto takes as many (GPUs, else cores) as split the global batch evenly."""
    num_nodes: PositiveInt = 1
    """Machines."""
    strategy: Literal["auto", "single", "ddp", "deepspeed"] = "auto"
    """auto is single for one device, else ddp."""
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "bf16-mixed"
    """Arithmetic of the forward and backward pass. 16-mixed needs CUDA."""
    max_epochs: PositiveInt = 350
    """Passes over the training samples."""
    max_steps: PositiveInt | None = None
    """Optimizer steps after which training ends early; the schedule still spans max_epochs. None is no such limit."""
    gradient_clip_val: PositiveFloat | None = None
    """Bound on the gradient; None is off."""
    gradient_clip_algorithm: Literal["norm", "value", "agc"] = "norm"
    """What gradient_clip_val bounds: the norm of all, each value, or (agc, such as 0.01) the norm of each unit's
    gradient as a share of that of its weights, but for the classifier's (Brock et al., arXiv 2102.06171)."""
    check_val_every_n_epoch: PositiveInt = 1
    """Epochs between validations."""
    log_every_n_steps: PositiveInt = 50
    """Optimizer steps between two rows of training metrics; between them the host does not wait for the device."""
    channels_last: bool = True
    """Memory format of images and weights: what lets cuDNN use tensor cores for EfficientNets."""
    gradient_checkpointing: bool = False
    """Keep the activations between blocks alone and compute those within once more in the backward pass: a larger
    micro-batch for a third more time, with the same weights bit for bit (Chen et al., arXiv 1604.06174)."""
    matmul_precision: Literal["highest", "high", "medium"] | None = None
    """How fp32 is multiplied on CUDA, in torch's words: highest is fp32, high TF32, medium bf16; convolutions take TF32
    for high and medium. None is torch's own: fp32, and TF32 for convolutions."""
    deterministic: bool = False
    """Take algorithms alone that give the same bits each time, on CUDA too, and refuse operations that have none;
    slower."""
    benchmark: bool = True
    """Have cuDNN try its algorithms for each shape of a convolution and take the fastest, but under `deterministic`: an
    attempt may take others than the one before, which round differently. A CPU has none to try."""
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """Mode of torch.compile for the network: reduce-overhead replays CUDA graphs, which is for small micro-batches, one
    a step. The first steps take minutes. Checkpoints are as without; dropout draws other masks. Averaged weights and a
    frozen backbone are computed without. None is off."""
    num_threads: PositiveInt | None = None
    """CPU threads of each rank for tensor operations; None divides the cores among the ranks."""
    ddp_comm_hook: Literal["fp16", "bf16"] | None = None
    """Format in which DDP's ranks sum gradients, by torch's own hooks: half the traffic between nodes, for rounding the
    gradients (bf16 to 8 bits, fp16 to 11 with a range up to 65504). None sums them as they are, in fp32."""
    sync_batchnorm: bool = False
    """Normalise by the statistics of all devices' micro-batches together (timm's and torch's SyncBatchNorm), where the
    micro-batch is too small for its own. BatchNorm then sees groups of micro_batch_size x devices x num_nodes: another
    number of devices is another training, on the same samples."""
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last optimizer step, from 1, that rank 0 writes a trace of to the run's `traces` folder, by
    torch.profiler (docs/performance.md). Steps are slower meanwhile. None is no trace."""


class Deepspeed(Section):
    """Settings that only strategy `deepspeed` reads."""

    zero_stage: Literal[1, 2, 3] | None = None
    """What ZeRO partitions: 1 optimizer states, 2 gradients too, 3 parameters too."""
    offload_optimizer: bool = False
    """Keep the optimizer's states and the fp32 weights in the host's memory, and step there by the same optimizer of
    timm: room on the GPU for a slower step. On the CPU it is there to be tried, and saves nothing."""
