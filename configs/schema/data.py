"""Settings of the data: shards, batches, images, augmentation."""

from typing import Annotated, Literal

from pydantic import Field

from configs.schema.audio import Audio
from configs.schema.section import (
    AugmentationPolicy,
    Fraction,
    Modality,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Section,
)
from configs.schema.text import Text


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
    aug_repeats: Annotated[int, Field(ge=2)] | None = None
    """Times that each sample is in a global batch, each time with another crop and other augmentation (Hoffer et al.,
    arXiv 1901.09335; timm's recipes: 3). An epoch has as many steps as without, and each sample comes in one of so many
    epochs: batches hold so many times fewer samples. Part of the order. None is off."""
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
    modality: Modality = "image"
    """What samples are, and how they become what the network sees: `image` decodes pictures; `text` draws texts (`txt`,
    UTF-8), and `audio` the spectrograms of recordings (`wav`, `flac`), as grey pictures, by `data.text` or `data.audio`
    in place of crops and augmentation (docs/modalities.md)."""
    prepare: Literal["digits", "python-texts", "spoken-digits"] | None = None
    """Data set to make where shards are missing: scikit-learn's handwritten digits (needs the `demo` extra), texts of
    Python's standard library by what they are, or digits that espeak-ng says (needs `speech`)."""
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
    text: Text = Text()
    audio: Audio = Audio()
