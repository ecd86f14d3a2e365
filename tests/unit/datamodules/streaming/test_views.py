"""Several views of each sample, for AugMix: clean and augmented, a function of seed, epoch and sample."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import AugMixDataset, create_transform

from datamodules.streaming.decode import Decode, Decoded
from datamodules.streaming.loaders import Collate
from datamodules.streaming.randomness import AUGMENTATION, seed_everything
from datamodules.streaming.transforms import training_transform
from tests.conftest import picture
from tests.unit.datamodules.streaming.test_transforms import data, sample

AUGMIX = {"auto_augment": "augmix-m5-w3"}


def views(count: int | None, number: int = 5, *, epoch: int = 2) -> torch.Tensor:
    """What a worker makes of a picture."""
    settings = data(augmentation={**AUGMIX, "aug_splits": count})
    decode = Decode(training_transform(settings, 16), in_chans=3, num_classes=4, seed=7)
    return decode(sample(picture(number, size=40), __index__=number, __epoch__=epoch))[0]


def test_the_first_view_is_clean_and_the_others_are_drawn_anew() -> None:
    plain = Decode(training_transform(data(), 16), in_chans=3, num_classes=4, seed=7)(sample(picture(5, size=40)))[0]
    found = views(4)

    assert found.shape == (4, 3, 16, 16)
    assert found.dtype == torch.uint8
    assert torch.equal(found[0], plain)
    assert len({view.numpy().tobytes() for view in found}) == 4


def test_the_views_are_those_of_timms_dataset() -> None:
    """Which crops once, as a stand-in does here, and augments by the same generator."""
    clean = views(3)[0].permute(1, 2, 0).numpy()
    _, augmix, _ = create_transform(16, is_training=True, interpolation="bicubic", separate=True, **AUGMIX)

    class Cropped:
        transform = (None, augmix, np.asarray)

        def __getitem__(self, _: int) -> tuple[Image.Image, int]:
            return Image.fromarray(clean), 1

    theirs = AugMixDataset(Cropped(), num_splits=3)
    seed_everything(7, AUGMENTATION, 2, 5)
    training_transform(data(), 16).geometry((40, 40))  # draws crop and flips
    expected, _ = theirs[0]
    for ours, view in zip(views(3), expected, strict=True):
        assert np.array_equal(ours.permute(1, 2, 0).numpy(), view)


def test_views_depend_on_the_sample_and_its_epoch_alone() -> None:
    first = views(3)
    views(3, 11)

    assert torch.equal(views(3), first)
    assert not torch.equal(views(3, epoch=3)[1], first[1])


@pytest.mark.parametrize("count", [2, 3])
def test_a_batch_has_the_clean_views_of_all_samples_first(count: int) -> None:
    samples: list[Decoded] = [(views(count, number), number % 4, number, 1.0, False) for number in (3, 5, 6)]
    batch = Collate()(samples)

    assert batch.images.shape == (3 * count, 3, 16, 16)
    assert batch.targets.tolist() == [3, 1, 2]
    for view in range(count):
        for place, decoded in enumerate(samples):
            assert torch.equal(batch.images[3 * view + place], decoded[0][view])
