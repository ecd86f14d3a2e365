"""Settings of the data that are valid alone and not together."""

import re
from collections.abc import Iterator

from configs.checks.problem import problem_with
from configs.problems import Problem, shown
from configs.schema import Augmentation, Config

URL_SECRET = re.compile(
    r"://[^/@]*@|[?&](sig|[^=&]*(key|token|secret|passw|credential|signature)[^=&]*)=", re.IGNORECASE
)
"""Part of a URL that holds a secret: a name and password before the host, or a signature or token in the query."""
NO_SECRETS = (
    "URLs without passwords, tokens and signatures: they are kept on disk and in logs, and a store's library finds "
    "what it needs in the environment (AWS_…, GOOGLE_APPLICATION_CREDENTIALS, HF_TOKEN) or its own files"
)


def masked_url(text: str) -> str | None:
    """A URL that holds a secret, as it may be shown; None for one that holds none."""
    if not URL_SECRET.search(text):
        return None
    return re.sub(r"://[^/@]*@", "://…@", text).partition("?")[0]


def batch_problems(config: Config) -> Iterator[Problem]:
    """Batches that cannot be dealt out."""
    data, trainer = config.data, config.trainer
    size, micro = data.global_batch_size, data.micro_batch_size
    if size % micro:
        accepted = f"a multiple of data.micro_batch_size = {micro}"
        yield problem_with(config, "data.global_batch_size", accepted, "data.micro_batch_size")
    elif isinstance(trainer.devices, int) and (size // micro) % (trainer.devices * trainer.num_nodes):
        yield problem_with(
            config,
            "data.global_batch_size",
            f"a multiple of micro_batch_size x devices x num_nodes = {micro} x {trainer.devices} x "
            f"{trainer.num_nodes} = {micro * trainer.devices * trainer.num_nodes}",
            "data.micro_batch_size",
            "trainer.devices",
            "trainer.num_nodes",
        )
    if size % data.num_lanes:
        accepted = f"a divisor of data.global_batch_size = {size}"
        yield problem_with(config, "data.num_lanes", accepted, "data.global_batch_size")
    if micro % 2 and (config.loss.mixup_alpha or config.loss.cutmix_alpha):
        accepted = "an even number: Mixup and CutMix mix pairs"
        yield problem_with(config, "data.micro_batch_size", accepted, "loss.mixup_alpha", "loss.cutmix_alpha")


def repeat_problems(config: Config) -> Iterator[Problem]:
    """Repeated augmentation of what cannot be dealt out so, of images that do not vary, of pairs of one sample."""
    data, loss, key = config.data, config.loss, "data.augmentation.aug_repeats"
    size, lanes, repeats = data.global_batch_size, data.num_lanes, data.augmentation.aug_repeats
    if repeats is None:
        return
    if not data.augmentation.enabled and not data.augmentation.random_erasing_prob:
        accepted = "null beside data.augmentation.enabled = false: the repeats would be the same image"
        yield problem_with(config, key, accepted, "data.augmentation.enabled")
    if size % lanes:
        return  # said of num_lanes
    if size % (lanes * repeats):
        accepted = (
            f"null, or a divisor of the {size // lanes} samples that each of data.num_lanes = {lanes} has in a batch"
        )
        yield problem_with(config, key, accepted, "data.global_batch_size", "data.num_lanes")
        return
    # Mixup pairs places i and N - 1 - i of a micro-batch of an even N: an odd way apart. Repeats are multiples of
    # what a lane has of different samples apart, which is none of those where it is even, or more than N.
    distinct = size // lanes // repeats
    if (loss.mixup_alpha or loss.cutmix_alpha) and distinct % 2 and distinct < data.micro_batch_size:
        accepted = (
            f"one that leaves each lane an even number of different samples, or {data.micro_batch_size} and more, not "
            f"{size} / {lanes} / {repeats} = {distinct}: Mixup and CutMix would mix some with themselves"
        )
        beside = ("data.global_batch_size", "data.num_lanes", "loss.mixup_alpha", "loss.cutmix_alpha")
        yield problem_with(config, key, accepted, *beside)


def address_problems(config: Config) -> Iterator[Problem]:
    """Secrets in the URLs of shards."""
    for key in ("train_shards", "val_shards"):
        shards = getattr(config.data, key)
        for text in (shards,) if isinstance(shards, str) else shards:
            masked = masked_url(text)
            if masked is not None:
                yield Problem(key=f"data.{key}", received=shown(masked), accepted=NO_SECRETS)


def image_problems(config: Config) -> Iterator[Problem]:
    """Channels, augmentation and how images are cut."""
    augmentation, in_chans = config.data.augmentation, config.model.in_chans
    for key in ("mean", "std"):
        values = getattr(config.data, key)
        if values is not None and len(values) != in_chans:
            yield problem_with(config, f"data.{key}", f"model.in_chans = {in_chans} values", "model.in_chans")
    for key in ("scale", "ratio"):
        low, high = getattr(augmentation, key)
        if low > high:
            yield problem_with(config, f"data.augmentation.{key}", "a lower and an upper bound, in that order")
    prob = "data.augmentation.random_erasing_prob"
    for name in ("random_erasing_mode", "random_erasing_count"):
        default = Augmentation.model_fields[name].default
        if not augmentation.random_erasing_prob and getattr(augmentation, name) != default:
            accepted = f"its default, {shown(default)}: with probability 0 nothing is erased"
            yield problem_with(config, f"data.augmentation.{name}", accepted, prob)
    for name, off in (
        ("rotation", "0"),
        ("auto_augment", "null"),
        ("color_jitter", "null"),
        ("random_erasing_prob", "0"),
    ):
        if not augmentation.enabled and getattr(augmentation, name):
            accepted = f"{off} beside data.augmentation.enabled = false"
            yield problem_with(config, f"data.augmentation.{name}", accepted, "data.augmentation.enabled")
    if in_chans != 3 and augmentation.auto_augment and config.data.modality == "image":
        accepted = "null: the policies work on RGB images"
        yield problem_with(config, "data.augmentation.auto_augment", accepted, "model.in_chans")
    if augmentation.color_jitter is not None and "3a" not in (augmentation.auto_augment or "3a"):
        accepted = f"null: timm leaves it out beside auto_augment = {augmentation.auto_augment}"
        yield problem_with(config, "data.augmentation.color_jitter", accepted, "data.augmentation.auto_augment")


def decoder_problems(config: Config) -> Iterator[Problem]:
    """What the GPU does not decode."""
    if config.data.decoder == "cpu":
        return
    decoder = "data.decoder"
    if config.trainer.accelerator == "cpu":
        accepted = "cpu beside trainer.accelerator = cpu"
        yield problem_with(config, decoder, accepted, "trainer.accelerator")
    if config.data.modality != "image":
        accepted = f"cpu beside data.modality = {config.data.modality}: the GPU decodes JPEGs alone"
        yield problem_with(config, decoder, accepted, "data.modality")
    elif config.model.in_chans != 3:
        accepted = f"cpu beside model.in_chans = {config.model.in_chans}: the GPU decodes RGB alone"
        yield problem_with(config, decoder, accepted, "model.in_chans")
    for name in ("rotation", "auto_augment", "color_jitter"):
        if getattr(config.data.augmentation, name):
            accepted = f"cpu beside data.augmentation.{name}, which works on the CPU's pixels"
            yield problem_with(config, decoder, accepted, f"data.augmentation.{name}")
