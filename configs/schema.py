"""Every setting of a run: its type, meaning, unit and default. Checked one by one here, together in checks.py."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(gt=0)]
NonNegativeInt = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
ValidationMetric = Literal["val/top1", "val/top5", "val/loss", "val/ema_top1", "val/ema_top5", "val/ema_loss"]
AugmentationPolicy = Annotated[
    str,
    Field(
        pattern=r"^(rand(-([mn]\d+|mmax\d+|mstd\d+(\.\d+)?|inc[01]|p(0?\.\d+|[01](\.0+)?)|t(weights|3aw?)))*"
        r"|augmix(-([mwd]\d+|b[01]|a\d+(\.\d+)?|mstd\d+(\.\d+)?))*|(originalr?|v0r?|3a)(-mstd\d+(\.\d+)?)?|trivial)$"
    ),
]
"""timm's string of an augmentation policy, or `trivial`."""
RunId = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]

VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
SubmitValue = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+$")]
"""Text on one line: what a scheduler's option can hold."""
AbsolutePath = Annotated[str, Field(pattern=r"^/[^\x00-\x1f\x7f:]*$")]
"""A path in a container. Kubernetes takes none with a colon."""
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$")]
"""Name of an object of Kubernetes."""


class Section(BaseModel):
    """A group of settings: frozen; unknown keys and infinite numbers refused, ints and bools not converted."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class Augmentation(Section):
    """Random transforms of training images: timm's and torchvision's, crop and resize made faster."""

    enabled: bool = True
    """Off: no random crop, flip, rotation, colour jitter or auto_augment (the last three are refused beside it, as is
    random_erasing_prob). The largest centred square is resized; evaluation's crop_pct has no effect. Mixup and CutMix
    are `loss.*`'s."""
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    """Share of the image's area that RandomResizedCrop takes (Inception; torchvision's default)."""
    ratio: tuple[PositiveFloat, PositiveFloat] = (0.75, 1.3333333333333333)
    """Aspect ratio of that crop."""
    hflip: Fraction = 0.5
    """Probability of a horizontal flip."""
    vflip: Fraction = 0.0
    """Probability of a vertical flip."""
    color_jitter: NonNegativeFloat | None = None
    """Strength of brightness, contrast and saturation jitter; None is off. Not together with auto_augment."""
    rotation: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, either way, drawn evenly (torchvision's RandomRotation, bilinear); 0 is off."""
    auto_augment: AugmentationPolicy | None = None
    """timm's string, such as `rand-m9-mstd0.5`, `original`, `augmix-m3-w3`, or `trivial`: torchvision's
    TrivialAugmentWide; None is off."""
    aug_splits: Annotated[int, Field(ge=2)] | None = None
    """Views of each sample that `loss.name=jsd` compares (AugMix: 3): one only cropped and flipped, the others of the
    same crop augmented too. All are in the sample's micro-batch, which is so many times as large. None is off."""
    random_erasing_prob: Fraction = 0.0
    """Probability that timm's RandomErasing blanks a part of an image, on the device, after normalisation."""
    random_erasing_mode: Literal["const", "rand", "pixel"] = "pixel"
    """Blank with 0, with one random colour, or with random pixels. No effect with random_erasing_prob=0."""
    random_erasing_count: PositiveInt = 1
    """Most parts of an image that are blanked. No effect with random_erasing_prob=0."""


class Data(Section):
    """Shards, batches and the order of samples."""

    train_shards: str | tuple[str, ...]
    """Tar shards: a path or URL (s3, gs, http, https, hf), glob, brace pattern, folder, `.txt` list, or a `.json` list
    of timm, open_clip or wids (`…/_info.json#train` for one of its splits); several joined by `::`, or as a list."""
    val_shards: str | tuple[str, ...]
    """Shards of the validation split, in the same forms."""
    prepare: Literal["digits"] | None = None
    """Data set to make where shards are missing: scikit-learn's handwritten digits (needs the `demo` extra)."""
    num_classes: PositiveInt = 1000
    """Labels are 0 to num_classes - 1 (ImageNet-1k)."""
    global_batch_size: PositiveInt = 256
    """Samples per optimizer step over all devices: keeps its meaning when their number changes."""
    micro_batch_size: PositiveInt = 64
    """Samples that a device takes at once. Accumulation follows from it, and BatchNorm sees groups of this size."""
    eval_batch_size: PositiveInt = 64
    """Samples that a device takes at once in evaluation. The result does not depend on it."""
    num_workers: NonNegativeInt = 4
    """Loader processes per device; 0 loads in the training process. The order of samples does not depend on it."""
    prefetch_batches: PositiveInt = 4
    """Micro-batches that each worker keeps ready. No effect with num_workers=0."""
    num_lanes: PositiveInt = 8
    """Lanes that an epoch's shards are dealt to; part of the order. Each node reads its own lanes, so choose a
    multiple of every node count you may use. Divides global_batch_size."""
    shuffle_window_shards: PositiveInt = 4
    """Shards of a lane whose samples are shuffled together; part of the order. More of them mix shards sorted by class
    better; of remote shards, a node needs num_lanes times as many at once (divided by the number of nodes)."""
    index_dir: str | None = None
    """Folder of index files; None keeps them beside the shards, or under ~/.cache/effnet where that is read-only or
    remote. One that all nodes share saves each of them a scan of remote shards, which reads them whole."""
    cache_dir: str = "~/.cache/effnet/shards"
    """Folder on a local disk where the processes of a node keep remote shards. No effect on local ones."""
    cache_bytes: PositiveInt = 64 * 1024**3
    """Most bytes of remote shards kept on a node; those used longest ago give way."""
    prefetch_shards: NonNegativeInt = 4
    """Remote shards that each loader process fetches ahead of the one it reads; 0 is off. All processes of a node share
    what is fetched. In a cache that holds little more than is read at once, it makes shards come more than once."""
    download_attempts: PositiveInt = 8
    """Times that a request to a server is tried, at intervals that grow to 30 s, before the run stops to be retried."""
    download_timeout_s: PositiveFloat = 60.0
    """Longest wait for a server's answer, and for the next bytes of a shard."""
    max_bad_fraction: Fraction = 0.001
    """Training goes on without images that cannot be read, each replaced by the next in its shard, while these are no
    more than this share of an epoch, or of all samples seen if those are more; 0 stops at the first."""
    image_size: PositiveInt | None = None
    """Side in pixels of the square that the network sees; None takes the model's own (timm, or 224 x 1.15^phi)."""
    eval_image_size: PositiveInt | None = None
    """Side in pixels in evaluation; None takes that of training. A larger one suits a network that was trained on
    random crops (Touvron et al., Fixing the train-test resolution discrepancy, arXiv 1906.06423)."""
    decoder: Literal["cpu", "nvjpeg"] = "cpu"
    """Where JPEGs in colour become pixels: `cpu` is the loader processes; `nvjpeg` is the GPU, which crops and resizes
    them too (torchvision's decode_jpeg). Pixels differ a little. Other images are decoded by the loader processes."""
    interpolation: Literal["bilinear", "bicubic", "random"] = "bicubic"
    """Resizing filter; `random` draws bilinear or bicubic in training and means bicubic in evaluation."""
    crop_pct: Annotated[float, Field(ge=0.01, le=1)] = 0.875
    """Share of the resized short side that the evaluation crop takes."""
    mean: tuple[float, ...] | None = None
    """Channel means in 0..1, subtracted on the device; None is ImageNet's (their average for one channel)."""
    std: tuple[PositiveFloat, ...] | None = None
    """Channel standard deviations in 0..1; None is ImageNet's."""
    augmentation: Augmentation = Augmentation()


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
    trained. None is no teacher."""
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
    """Optimizer steps between two rows of training metrics; between them the host waits for the device only to know
    whether a step is to be skipped (fault.max_skipped_steps)."""
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
    compile: Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"] | None = None
    """Mode of torch.compile for the network: reduce-overhead replays CUDA graphs, which is for small micro-batches. The
    first steps take minutes. Checkpoints are as without; dropout draws other masks. Averaged weights and a frozen
    backbone are computed without. None is off."""
    num_threads: PositiveInt | None = None
    """CPU threads of each rank for tensor operations; None divides the cores among the ranks."""
    ddp_comm_hook: Literal["fp16", "bf16"] | None = None
    """Format in which DDP's ranks sum gradients, by torch's own hooks: half the traffic between nodes, for rounding the
    gradients (bf16 to 8 bits, fp16 to 11 with a range up to 65504). None sums them as they are, in fp32."""
    profile_steps: tuple[PositiveInt, PositiveInt] | None = None
    """First and last optimizer step, from 1, that rank 0 writes a trace of to the run's `traces` folder, by
    torch.profiler (docs/performance.md). Steps are slower meanwhile. None is no trace."""


class Deepspeed(Section):
    """Settings that only strategy `deepspeed` reads."""

    zero_stage: Literal[1, 2, 3] | None = None
    """What ZeRO partitions: 1 optimizer states, 2 gradients too, 3 parameters too."""


class Resume(Section):
    """How an attempt goes on from what earlier ones saved.

    `resume=X` is short for `resume.checkpoint=X`; where X is the directory of a run, for `model.checkpoint_path=X`: its
    weights alone, a warm start.
    """

    checkpoint: str = "auto"
    """`auto` goes on from the newest checkpoint that verifies, `never` refuses to touch a run that has one; else the
    path of a checkpoint directory; a relative one begins where the command is given."""
    allow_changes: bool = False
    """Go on though settings differ that make another experiment of it (seed, data, global batch, learning rate, …). The
    data goes on at the same share of its epoch, to within a batch. The network, its classes and the kind of optimizer
    must stay the same."""


class Checkpoint(Section):
    """When checkpoints are written, where, and which are kept. One is always written at the end."""

    every_n_steps: PositiveInt | None = None
    """Optimizer steps between checkpoints; None is off."""
    every_n_minutes: PositiveFloat | None = None
    """Minutes after a checkpoint of any kind until the next; None is off."""
    every_n_epochs: PositiveInt = 1
    """Epochs between checkpoints."""
    asynchronous: bool = True
    """Write while training goes on, from a copy in host memory. DeepSpeed's own files are written before it goes on."""
    keep_last: PositiveInt = 3
    """Newest checkpoints kept. The last one that verifies is never removed."""
    keep_best: PositiveInt | None = 1
    """Checkpoints kept beside these for their value of `monitor`; None is none."""
    monitor: ValidationMetric | None = None
    """Validation metric that `keep_best` goes by: losses the lower, others the higher the better. None is
    `val/ema_top1`, or `val/top1` where no average is kept."""
    keep_every_n_steps: PositiveInt | None = None
    """The first checkpoint at or after each multiple of this many optimizer steps is kept for ever; None is none."""
    remote_dir: Annotated[str, Field(pattern=r"^[a-z][a-z0-9+.-]*://[^@:]*$")] | None = None
    """URL of a folder (`s3://bucket/folder`, or any other that fsspec writes to) in which the run's checkpoints are
    kept as well, in a folder of its id. A run without checkpoints here goes on from those there. None is off."""
    max_failures: PositiveInt = 5
    """Saves that may fail in a row, whether on disk or to remote_dir; then training stops, to be tried again."""
    retry_pause_s: PositiveFloat = 60.0
    """Seconds of training until a failed save is tried again; doubles with each failure in a row, up to 10 minutes."""


class Fault(Section):
    """What happens when something goes wrong."""

    timeout_s: PositiveFloat = 300.0
    """Longest wait in a collective operation before a rank gives up on its peers."""
    hang_timeout_s: PositiveFloat | None = 900.0
    """Seconds without a micro-batch, of training or validation, after which a rank writes its Python stacks to its log
    and ends, to be tried again. The first micro-batch may take half an hour. None is off."""
    max_time_minutes: PositiveFloat | None = None
    """Minutes after which the run is checkpointed and ends with exit code 85, as after a signal; from the start of
    `effnet fit`, restarts included, or of a job's rank 0. Set it below a scheduler's limit by more than a step and a
    save take. None is no limit."""
    restart_backoff_s: PositiveFloat = 10.0
    """Seconds before the first restart of `effnet fit --max-restarts`, give or take half; doubles with each further one
    without a newer checkpoint, up to 5 minutes."""
    check_every_n_steps: PositiveInt = 1
    """Optimizer steps between two agreements on whether a signal has arrived."""
    max_skipped_steps: NonNegativeInt = 10
    """Optimizer steps in a row that are left out because loss or gradient is not finite; one more, and the run goes
    back to the checkpoint before them, past their data. 0 goes back at the first: then no step waits for the device."""
    max_rollbacks: NonNegativeInt = 2
    """Times that a run goes back so; one more, and it ends with exit code 93. 0 ends it at once."""


class Doctor(Section):
    """What `effnet doctor` and `effnet launch … --preflight` hold a node to."""

    timeout_s: PositiveFloat = 300.0
    """Longest time that an examination of all nodes may take. Nodes that have not answered by then are named."""
    min_bandwidth_gb_per_s: PositiveFloat | None = None
    """Least bus bandwidth of an all-reduce over all devices, of that inside a node, and between two nodes; None goes by
    what joins them (docs/doctor.md)."""
    max_latency_ms: PositiveFloat | None = None
    """Longest time of an all-reduce of one number over all devices; None goes by what joins them."""
    max_clock_skew_s: PositiveFloat = 1.0
    """Most that a node's clock may differ from the first node's: clocks tell which rank failed first."""
    min_disk_mb_per_s: PositiveFloat = 20.0
    """Least speed at which the run directory, and the cache of remote shards, are written, forced to disk."""
    min_open_files: PositiveInt = 1024
    """Least `ulimit -n`."""
    images_per_s_per_device: PositiveFloat | None = None
    """Images that a device trains on per second, which shards must keep up with; None is what this run has measured
    before, else a published figure for that model and device, if there is one."""


class Tracking(Section):
    """Weights & Biases. metrics.csv is always written."""

    mode: Literal["online", "offline", "disabled"] = "online"
    """W&B's own modes. `offline` keeps all in the run directory, for `wandb sync` later."""
    project: str = "effnet"
    """W&B project."""
    entity: str | None = None
    """W&B user or team; None is the key's default."""
    tags: tuple[str, ...] = ()
    """W&B tags."""


class Slurm(Section):
    """What a job says to Slurm. Only `effnet launch slurm` reads it."""

    account: SubmitValue | None = None
    """Account to charge (sbatch --account); None is the user's own. So for the next four."""
    partition: SubmitValue | None = None
    """Partition, or several joined by commas."""
    qos: SubmitValue | None = None
    """Quality of service."""
    constraint: SubmitValue | None = None
    """Features that nodes must have, such as `h100&ib`."""
    reservation: SubmitValue | None = None
    """Reservation to run in."""
    signal_before_s: Annotated[int, Field(gt=0, le=65535)] = 180
    """Seconds before the time limit at which ranks are told to checkpoint and end: more than a step and a save take."""
    elastic: bool = False
    """One task per node that runs torchrun, which goes on with fewer nodes, in place of one task per device."""
    min_nodes: PositiveInt | None = None
    """Nodes that an elastic job goes on with; None is all of them. No effect without elastic."""
    modules: tuple[SubmitValue, ...] = ()
    """Environment modules that the job loads first, such as `cuda/13.0`."""
    container: Literal["pyxis", "apptainer"] = "pyxis"
    """What runs launch.image: NVIDIA's Pyxis with Enroot, or Apptainer (Singularity)."""
    options: dict[str, bool | int | SubmitValue] = {}
    """Further options of sbatch by their long names, such as `exclude: node[3-4]`, `exclusive: true`."""


class Ssh(Section):
    """Hosts that are reached by ssh. Only `effnet launch ssh` reads it."""

    hosts: tuple[SubmitValue, ...] = ()
    """Hosts, as many as trainer.num_nodes: `node1` or `node1 slots=8`, a name of ssh's configuration or `user@address`.
    The first has the rendezvous."""
    hostfile: str | None = None
    """File with such a line for each host, in place of launch.ssh.hosts; `#` begins a comment."""
    config_file: str | None = None
    """Configuration of ssh (`ssh -F`); None is the user's own."""
    master_addr: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.-]*$")] | None = None
    """Address by which the other hosts reach the first one; None is the one by which ssh reached it."""
    master_port: Annotated[int, Field(gt=0, le=65535)] | None = None
    """Port of the rendezvous on the first host; None is one that is free there."""
    lost_after_s: Annotated[int, Field(ge=3)] = 30
    """Seconds without an answer after which a host is given up, and a host without word from here ends its ranks."""


class Volume(Section):
    """Storage that the pods see: of `claim`, `csi` and `nfs_server`, one."""

    path: AbsolutePath
    """Where the pods see it."""
    claim: SubmitValue | None = None
    """A PersistentVolumeClaim; for several nodes one that is ReadWriteMany (or ReadOnlyMany, for shards)."""
    csi: SubmitValue | None = None
    """A CSI driver that mounts an object store in the pod's lifetime, such as `gcsfuse.csi.storage.gke.io`."""
    csi_attributes: dict[str, str] = {}
    """What the driver is told, such as `bucketName: imagenet`."""
    nfs_server: SubmitValue | None = None
    """Host of an NFS server."""
    nfs_path: AbsolutePath | None = None
    """Folder that the NFS server exports."""
    sub_path: Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f][^\x00-\x1f\x7f]*$")] | None = None
    """Folder of the storage that is seen; None is all of it."""
    read_only: bool = False
    """Whether the pods only read, as is right for shards."""


class Toleration(Section):
    """A taint of nodes that does not keep the pods away, in the words of Kubernetes."""

    key: SubmitValue | None = None
    """Key of the taint; None is every key, with `operator: Exists`."""
    operator: Literal["Exists", "Equal"] = "Exists"
    """Whether any value is meant or `value` alone."""
    value: SubmitValue | None = None
    """Value of the taint, with `operator: Equal`."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Effect of the taint; None is every one."""


class Kubernetes(Section):
    """What a job says to Kubernetes. Only `effnet launch kubernetes` reads it."""

    kind: Literal["trainjob", "jobset"] = "trainjob"
    """A TrainJob of Kubeflow Trainer v2 with a TrainingRuntime of its own, or a JobSet alone."""
    namespace: KubernetesName = "default"
    """Namespace of all that is made."""
    work_dir: AbsolutePath | None = None
    """Where relative paths of the configuration begin in the pods, runs_dir among them; None is the folder that
    `effnet` is called in, which a volume must then bring under the same path."""
    volumes: tuple[Volume, ...] = ()
    """Storage for shards and runs. The run directory must lie on one that can be written."""
    shared_memory_gb: PositiveInt = 16
    """Size of /dev/shm in GiB, through which loaders pass batches. It counts as memory of the pod."""
    wandb_secret: KubernetesName | None = None
    """Secret of the namespace that has the W&B key as WANDB_API_KEY."""
    secrets: tuple[KubernetesName, ...] = ()
    """Secrets all of whose entries become variables, such as those of an object store."""
    image_pull_secret: KubernetesName | None = None
    """Secret with which launch.image is pulled."""
    service_account: KubernetesName | None = None
    """Service account of the pods; None is the namespace's default."""
    node_selector: dict[str, str] = {}
    """Labels that nodes must have."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints of nodes that do not matter."""
    queue: KubernetesName | None = None
    """LocalQueue of Kueue that admits the job; None is no queue."""
    gpu_resource: SubmitValue = "nvidia.com/gpu"
    """Name of a GPU among the resources of a node."""
    resources: dict[str, PositiveInt] = {}
    """Further resources of each pod, such as `rdma/hca: 1`."""
    termination_grace_s: PositiveInt = 600
    """Seconds from the signal to the kill: longer than a step and a save take."""


class Hardware(Section):
    """What a device and a node can do, by datasheets, without sparsity. Only `effnet plan` reads it. GB is 10^9."""

    device: SubmitValue | None = None
    """Name of the device, such as `NVIDIA H100 SXM`."""
    memory_gb: PositiveFloat | None = None
    """Memory of a device in GiB."""
    memory_gb_per_s: PositiveFloat | None = None
    """Bandwidth of that memory."""
    fp32_tflops: PositiveFloat | None = None
    """Peak rate of convolutions with 32-true (on NVIDIA's GPUs since 2020 that of TF32, cuDNN's default)."""
    fp16_tflops: PositiveFloat | None = None
    """Peak rate with 16-mixed; None where the device is none for it."""
    bf16_tflops: PositiveFloat | None = None
    """Peak rate with bf16-mixed; None where the device is none for it."""
    device_link_gb_per_s: PositiveFloat | None = None
    """What a device sends to others in its node, such as by NVLink, each way."""
    node_link_gb_per_s: PositiveFloat | None = None
    """What a node sends to others, over all its network cards, each way."""
    storage_gb_per_s: PositiveFloat | None = None
    """What a node reads from where the shards are."""
    cores_per_node: PositiveInt | None = None
    """Cores of a node's CPUs."""
    images_per_core_s: PositiveFloat = 760.0
    """Images that a core decodes, crops to 224 and collates in a second, without auto_augment (500x375 JPEGs of 110 KB,
    an EPYC core: `benchmarks/data.py`, 25 November 2026)."""


class Launch(Section):
    """What a job on a cluster gets. No part of the experiment: it may differ between two attempts of one run."""

    cpus_per_device: PositiveInt | None = None
    """Cores for each device's process and its loaders; None is data.num_workers + 1."""
    memory_per_node_gb: PositiveInt | None = None
    """Main memory of each node in GiB; None is the cluster's default."""
    time_limit_minutes: PositiveInt | None = None
    """Longest time that the job may take at a stretch; None is the cluster's default. A requeued job has it anew."""
    python: str | None = None
    """Interpreter on the nodes; None is the one that runs `effnet`, or `python3` in an image."""
    image: SubmitValue | None = None
    """Container image to run in, as the cluster's container runtime names it; None runs on the nodes themselves."""
    mounts: tuple[Annotated[str, Field(pattern=r"^/[^:,]*:/[^:,]*(:ro)?$")], ...] = ()
    """Folders that a container sees, `/on/the/node:/in/the/container` or with `:ro`; the run's own is always there."""
    pass_environment: tuple[VariableName, ...] = ()
    """Names of variables of this shell that the job gets too, beyond those of NCCL, gloo and proxies."""
    environment: dict[VariableName, str] = {}
    """Variables that the job gets, by name. No secrets: this is written to the run directory."""
    max_requeues: NonNegativeInt = 100
    """Times that the job goes back into the queue after a checkpoint (time limit, preemption); then it ends with 85."""
    max_failures: NonNegativeInt = 3
    """Failures in a row, without a new checkpoint between, after which the job starts again; one more ends it."""
    hardware: Hardware = Hardware()
    slurm: Slurm = Slurm()
    ssh: Ssh = Ssh()
    kubernetes: Kubernetes = Kubernetes()


class Config(Section):
    """A whole run."""

    name: RunId = "run"
    """Short name; the default run id starts with it."""
    run_id: RunId | None = None
    """Folder under runs_dir; None is `name` plus a hash of the experiment: the same command, the same run."""
    runs_dir: str = "runs"
    """Where run directories are made."""
    seed: NonNegativeInt = 0
    """Seeds weights, order, augmentation and dropout."""
    data: Data
    model: Model = Model()
    loss: Loss = Loss()
    distillation: Distillation = Distillation()
    progressive: Progressive = Progressive()
    optimizer: Optimizer = Optimizer()
    scheduler: Scheduler = Scheduler()
    ema: Ema = Ema()
    trainer: Trainer = Trainer()
    deepspeed: Deepspeed = Deepspeed()
    resume: Resume = Resume()
    checkpoint: Checkpoint = Checkpoint()
    fault: Fault = Fault()
    doctor: Doctor = Doctor()
    tracking: Tracking = Tracking()
    launch: Launch = Launch()

    @property
    def monitor(self) -> str:
        """The validation metric by which a checkpoint is better than another."""
        return self.checkpoint.monitor or ("val/ema_top1" if self.ema.enabled else "val/top1")

    @property
    def plateau_monitor(self) -> str:
        """The validation metric by which the schedule `plateau` decays."""
        return self.scheduler.monitor or ("val/ema_top1" if self.ema.enabled else "val/top1")

    @property
    def width_and_depth(self) -> tuple[float, float] | None:
        """Multipliers of B0's channels and repeats, or None where `model.name` says all.

        Constants: Tan and Le, EfficientNet, ICML 2019, section 4 (alpha 1.2, beta 1.1, gamma 1.15).
        """
        if self.model.compound_phi is not None:
            return 1.1**self.model.compound_phi, 1.2**self.model.compound_phi
        if self.model.width_multiplier is None and self.model.depth_multiplier is None:
            return None
        return self.model.width_multiplier or 1.0, self.model.depth_multiplier or 1.0
