"""From encoded images to a network's input: timm's transforms within a grey level, randomness by sample alone."""

import io
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torchvision.transforms import (
    CenterCrop,
    ColorJitter,
    Compose,
    InterpolationMode,
    PILToTensor,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomRotation,
    Resize,
    TrivialAugmentWide,
)

from configs.problems import DataError
from configs.schema import Augmentation, Data
from datamodules.images.decoding import BadSampleError, open_image
from datamodules.streaming.decode import Decode, Transform
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.transforms import (
    _pil_transforms,
    channel_statistics,
    evaluation_transform,
    training_transform,
)
from tests.conftest import picture
from tests.unit.datamodules.encoded import encoded, noise, photograph

STRONG = Augmentation(auto_augment="rand-m9-mstd0.5-inc1", vflip=0.5)
PHOTOGRAPHS = [
    ("astronaut", 500, 375),
    ("chelsea", 375, 500),
    ("coffee", 600, 400),
    ("rocket", 1280, 854),
    ("retina", 1411, 1411),
]


def data(**changes: Any) -> Data:
    return Data.model_validate({"train_shards": "train", "val_shards": "val"} | changes)


def sample(contents: bytes, extension: str = "png", **changes: Any) -> dict[str, Any]:
    fields = {
        "__key__": "n01/img",
        "__url__": "/data/a.tar",
        "__index__": 5,
        "__epoch__": 2,
        "__repeat__": 0,
        "__label__": 1,
    }
    return fields | {"__weight__": 1.0, extension: contents} | changes


def decode(in_chans: int = 3, transform: Transform | None = None, seed: int | None = None) -> Decode:
    return Decode(transform or evaluation_transform(data(), 16), in_chans=in_chans, num_classes=4, seed=seed)


def difference(ours: torch.Tensor, theirs: Any) -> float:
    """Mean absolute difference in grey levels."""
    theirs = torch.as_tensor(theirs)
    assert ours.dtype == theirs.dtype == torch.uint8
    assert ours.shape == theirs.shape
    return float((ours.int() - theirs.int()).abs().float().mean())


# Evaluation


@pytest.mark.parametrize(("name", "width", "height"), PHOTOGRAPHS)
@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (64, 1.0), (300, 0.904), (380, 0.922)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_timms_within_half_a_grey_level(
    name: str, width: int, height: int, image_size: int, crop_pct: float, interpolation: str
) -> None:
    contents = encoded(photograph(name, width, height), "JPEG", quality=95)
    settings = data(crop_pct=crop_pct, interpolation=interpolation)
    options = {"crop_pct": crop_pct, "interpolation": interpolation, "use_prefetcher": True}
    theirs = create_transform(image_size, is_training=False, **options)(Image.open(io.BytesIO(contents)))
    assert difference(evaluation_transform(settings, image_size)(open_image(contents, "RGB")), theirs) < 0.5


@pytest.mark.parametrize("size", [(40, 30), (224, 224), (1, 1), (2, 3), (3000, 20), (7, 900), (257, 256)])
@pytest.mark.parametrize(("image_size", "crop_pct"), [(224, 0.875), (64, 1.0)])
def test_evaluation_is_timms_for_images_of_any_shape(size: tuple[int, int], image_size: int, crop_pct: float) -> None:
    image = noise(*size)
    ours = evaluation_transform(data(crop_pct=crop_pct), image_size)(open_image(encoded(image, "PNG"), "RGB"))
    options = {"crop_pct": crop_pct, "interpolation": "bicubic", "use_prefetcher": True}
    assert difference(ours, create_transform(image_size, is_training=False, **options)(image)) < 1


@pytest.mark.parametrize("orientation", [2, 3, 6, 8])
def test_images_stored_on_their_side_are_seen_upright_where_timms_reader_leaves_them(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    contents = encoded(photograph("coffee", 600, 400), "JPEG", quality=95, exif=exif)
    ours = evaluation_transform(data(), 224)(open_image(contents, "RGB"))
    stored = Image.open(io.BytesIO(contents))
    timms = create_transform(224, is_training=False, interpolation="bicubic", use_prefetcher=True)
    assert difference(ours, timms(ImageOps.exif_transpose(stored))) < 0.5
    assert difference(ours, timms(stored)) > 10


def test_evaluation_is_resize_and_centre_crop_of_torchvision() -> None:
    image = photograph()
    expected = Compose([Resize(256, InterpolationMode.BICUBIC), CenterCrop(224), PILToTensor()])(image)
    assert difference(evaluation_transform(data(), 224)(open_image(encoded(image, "PNG"), "RGB")), expected) < 0.5


def test_evaluation_draws_no_random_number() -> None:
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    transform = evaluation_transform(data(interpolation="random"), 32)
    first, *_ = decode(transform=transform)(sample(picture(3)))
    second, *_ = decode(transform=transform)(sample(picture(3), __epoch__=9))
    assert torch.equal(first, second)
    assert states == (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())


# Training


@pytest.mark.parametrize(
    "policy", ["rand-m10-inc1-p1", "rand-m0-p1", "rand-m9-mstd0.5-inc1-n9", "rand-m20-mmax20-inc1", "v0", "3a"]
)
def test_policies_that_keep_no_bit_of_an_image_give_black(policy: str) -> None:
    """Pillow refuses 0 bits, by which timm's own posterize ends training at such an image."""
    transform = training_transform(data(augmentation=Augmentation(auto_augment=policy)), 16)
    image = open_image(picture(1), "RGB")
    for epoch in range(300):
        seed_everything(1, AUGMENTATION, epoch, 0)
        assert transform(image).shape == (3, 16, 16)


@pytest.mark.parametrize(("mean", "grey"), [(None, (124, 116, 104)), ((0.5, 0.5, 0.5), (128, 128, 128))])
def test_policies_fill_with_the_mean_of_an_image(mean: tuple[float, ...] | None, grey: tuple[int, ...]) -> None:
    given = data(mean=mean, std=mean, augmentation=Augmentation(auto_augment="rand-m9-mstd0.5"))
    (policy,) = _pil_transforms(given, 16)
    assert {operation.kwargs["fillcolor"] for operation in policy.ops} == {grey}


def both(ours: Transform, theirs: Callable[[Image.Image], Any], contents: bytes, epochs: int) -> list[float]:
    """Differences where both draw from the same state."""
    found = []
    for epoch in range(epochs):
        seed_everything(1, AUGMENTATION, epoch, 0)
        pixels = ours(open_image(contents, "RGB"))
        state = random.getstate(), torch.get_rng_state()
        seed_everything(1, AUGMENTATION, epoch, 0)
        found.append(difference(pixels, theirs(Image.open(io.BytesIO(contents)).convert("RGB"))))
        assert random.getstate() == state[0]  # nothing more, nothing less was drawn
        assert torch.equal(torch.get_rng_state(), state[1])
    return found


@pytest.mark.parametrize(("name", "width", "height"), PHOTOGRAPHS[:4])
@pytest.mark.parametrize("changes", [{}, {"vflip": 0.5, "scale": (0.3, 0.6)}, {"hflip": 0.0, "ratio": (0.5, 2.0)}])
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_training_crops_and_flips_are_timms_within_half_a_grey_level(
    name: str, width: int, height: int, changes: dict[str, Any], interpolation: str
) -> None:
    contents = encoded(photograph(name, width, height), "JPEG", quality=95)
    augmentation = Augmentation(**changes)
    ours = training_transform(data(augmentation=augmentation, interpolation=interpolation), 224)
    theirs = create_transform(
        224,
        is_training=True,
        scale=augmentation.scale,
        ratio=augmentation.ratio,
        hflip=augmentation.hflip,
        vflip=augmentation.vflip,
        color_jitter=None,
        interpolation=interpolation,
        use_prefetcher=True,
    )
    assert max(both(ours, theirs, contents, 12)) < 0.5


def test_training_crops_and_flips_are_torchvisions() -> None:
    """The same distribution; torchvision draws from another generator, so means over many draws are compared."""
    image = photograph(width=160, height=120)
    gradient = Image.fromarray(np.linspace(0, 255, 160).astype(np.uint8)[None, :, None].repeat(120, 0).repeat(3, 2))
    stock = Compose([RandomResizedCrop(16), RandomHorizontalFlip(), PILToTensor()])
    for source in (image, gradient):
        encoded_source = open_image(encoded(source, "PNG"), "RGB")
        ours = training_transform(data(), 16)
        means = [[], []]
        for number in range(600):
            seed_everything(number)
            means[0].append(ours(encoded_source).float().mean((1, 2)))
            means[1].append(stock(source).float().mean((1, 2)))
        first, second = (torch.stack(found) for found in means)
        assert (first.mean(0) - second.mean(0)).abs().max() < 4 * float(first.std(0).max()) * (2 / 600) ** 0.5
        assert (first.std(0) / second.std(0) - 1).abs().max() < 0.2


def test_a_jpeg_decoded_to_a_fraction_for_its_crop_is_timms_within_two_grey_levels() -> None:
    """The crop's corners are rounded to pixels of the smaller image, a quarter of an output pixel at most."""
    contents = encoded(photograph("retina", 1411, 1411), "JPEG", quality=95)
    theirs = create_transform(96, is_training=True, color_jitter=None, interpolation="bicubic", use_prefetcher=True)
    differences = both(training_transform(data(), 96), theirs, contents, 12)
    assert max(differences) < 2
    assert max(differences) > 0.2  # it was decoded to a fraction


@pytest.mark.parametrize(
    ("changes", "timms"),
    [
        ({"auto_augment": "rand-m9-mstd0.5-inc1"}, {"auto_augment": "rand-m9-mstd0.5-inc1"}),
        ({"auto_augment": "original-mstd0.5"}, {"auto_augment": "original-mstd0.5"}),
        ({"auto_augment": "augmix-m3-w3"}, {"auto_augment": "augmix-m3-w3"}),
        ({"auto_augment": "3a", "color_jitter": 0.4}, {"auto_augment": "3a", "color_jitter": 0.4}),
        ({"color_jitter": 0.4}, {"color_jitter": 0.4}),
    ],
)
def test_policies_and_jitter_are_timms(changes: dict[str, Any], timms: dict[str, Any]) -> None:
    contents = encoded(photograph(), "JPEG", quality=95)
    options = {"color_jitter": None, "interpolation": "bicubic", "use_prefetcher": True} | timms
    ours = training_transform(data(augmentation=Augmentation(**changes)), 96)
    assert float(np.median(both(ours, create_transform(96, is_training=True, **options), contents, 12))) < 1


@pytest.mark.parametrize(
    ("changes", "stage"),
    [
        ({"rotation": 30.0}, RandomRotation(30, interpolation=InterpolationMode.BILINEAR)),
        ({"auto_augment": "trivial"}, TrivialAugmentWide(interpolation=InterpolationMode.BILINEAR)),
        ({"color_jitter": 0.4}, ColorJitter(0.4, 0.4, 0.4)),
    ],
)
def test_rotation_trivial_augment_and_jitter_are_torchvisions(
    changes: dict[str, Any], stage: Callable[[Image.Image], Image.Image]
) -> None:
    contents = encoded(photograph(), "JPEG", quality=95)
    ours = training_transform(data(augmentation=Augmentation(**changes)), 96)
    primary, _, last = create_transform(
        96, is_training=True, color_jitter=None, interpolation="bicubic", use_prefetcher=True, separate=True
    )
    assert float(np.median(both(ours, Compose([primary, stage, last]), contents, 12))) < 1


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(),
        STRONG,
        Augmentation(color_jitter=0.4, auto_augment="3a"),
        Augmentation(color_jitter=0.4),
        Augmentation(auto_augment="original-mstd0.5"),
        Augmentation(auto_augment="augmix-m3-w3"),
        Augmentation(auto_augment="trivial", rotation=10.0),
    ],
    ids=["plain", "rand", "3a", "jitter", "original", "augmix", "trivial"],
)
@pytest.mark.parametrize("interpolation", ["bicubic", "random"])
def test_augmentation_depends_on_seed_epoch_and_sample_alone(augmentation: Augmentation, interpolation: str) -> None:
    transform = training_transform(data(augmentation=augmentation, interpolation=interpolation), 32)
    call = decode(transform=transform, seed=7)
    raw = sample(encoded(noise(60, 40), "PNG"))
    expected, *_ = call(raw)
    assert expected.shape == (3, 32, 32)
    assert expected.dtype == torch.uint8
    others = [call(raw | {"__epoch__": epoch, "__index__": index})[0] for epoch, index in ((2, 6), (3, 5), (5, 2))]
    others.append(decode(transform=transform, seed=8)(raw)[0])
    for state in range(3):  # whatever was drawn before, and whichever process draws
        random.seed(state)
        np.random.seed(state)
        torch.manual_seed(state)
        assert torch.equal(call(raw)[0], expected)
        fresh = training_transform(data(augmentation=augmentation, interpolation=interpolation), 32)
        assert torch.equal(decode(transform=fresh, seed=7)(raw)[0], expected)
    assert sum(not torch.equal(other, expected) for other in others) == len(others)


def test_augmentation_switched_off_is_resizing_and_a_centre_crop() -> None:
    """As the setting's docstring says; timm's has no margin, so evaluation with crop_pct=1 is the same."""
    image = open_image(encoded(noise(50, 40), "PNG"), "RGB")
    off = training_transform(data(augmentation=Augmentation(enabled=False)), 32)
    assert torch.equal(off(image), evaluation_transform(data(crop_pct=1.0), 32)(image))


# Channels


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(rotation=20.0)])
@pytest.mark.parametrize("in_chans", [1, 3, 4])
def test_both_transforms_take_the_channels_asked_for(in_chans: int, augmentation: Augmentation) -> None:
    contents = encoded(noise(50, 40), "JPEG")
    training = training_transform(data(augmentation=augmentation), 24)
    for transform, seed in ((training, 0), (evaluation_transform(data(), 24), None)):
        pixels, *_ = decode(in_chans, transform, seed)(sample(contents, "jpg"))
        assert pixels.shape == (in_chans, 24, 24)
        assert pixels.dtype == torch.uint8


@pytest.mark.parametrize(("in_chans", "mode"), [(1, "L"), (4, "RGBA")])
def test_images_of_1_and_4_channels_are_timms_within_a_grey_level(in_chans: int, mode: str) -> None:
    image = photograph().convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    contents = encoded(image, "PNG")
    pixels = evaluation_transform(data(), 224)(open_image(contents, mode))
    theirs = create_transform(224, is_training=False, interpolation="bicubic", use_prefetcher=True)(image)
    assert difference(pixels, theirs) < 1


# Samples


def test_of_several_images_in_a_sample_the_first_kind_counts() -> None:
    first, second = encoded(noise(8, 8, seed=1), "PNG"), encoded(noise(8, 8, seed=2), "PNG")
    raw = sample(second, "png") | {"webp": b"not read", "jpg": first}
    assert torch.equal(decode()(raw)[0], decode()(sample(first))[0])


def test_a_sample_keeps_what_belongs_to_it() -> None:
    assert decode()(sample(picture(0)))[1:] == (1, 5, 1.0, False)


def test_a_bad_sample_is_named_with_its_shard_and_key() -> None:
    with pytest.raises(BadSampleError, match=r"^/data/a\.tar: sample n01/img\.jpg: not a readable image \("):
        decode()(sample(encoded(noise(200, 100), "JPEG")[:500], "jpg"))


@pytest.mark.parametrize("label", [-1, 4, 1000])
def test_a_label_out_of_range_is_a_data_error_with_shard_and_key(label: int) -> None:
    with pytest.raises(DataError, match=rf"/data/a\.tar: sample n01/img: label {label}, but data\.num_classes is 4"):
        decode()(sample(picture(0), __label__=label))


# Normalisation


def test_channel_statistics_are_imagenets_spread_over_the_channels() -> None:
    assert channel_statistics(data(), 3) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    mean, std = channel_statistics(data(), 1)
    assert mean == pytest.approx((0.449,))
    assert std == pytest.approx((0.226,))
    assert [len(values) for values in channel_statistics(data(), 4)] == [4, 4]
    assert channel_statistics(data(mean=(0.5,), std=(0.25,)), 1) == ((0.5,), (0.25,))
