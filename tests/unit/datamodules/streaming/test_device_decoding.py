"""JPEGs decoded on the device: the CPU's samples, order and substitutes, its images within a grey level.

All runs on the CPU, which decodes lists of JPEGs by the same functions; on a GPU too where there is one.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from pytorch_lightning import LightningModule, Trainer
from timm.data import create_transform

from configs.problems import ConfigError, DataError
from configs.schema import Augmentation, Data
from datamodules.imagenet import ImageNetDataModule
from datamodules.images.decoding import BadSampleError, open_image
from datamodules.streaming import device_decoding
from datamodules.streaming.encoded import Encoded, EncodedBatch, LeaveEncoded
from datamodules.streaming.loaders import Batch
from datamodules.streaming.transforms import evaluation_transform
from tests.unit.datamodules.archives import write_tar
from tests.unit.datamodules.encoded import encoded, noise, photograph

CPU = torch.device("cpu")
SIZE = 64
DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is here")],
    ),
]
Build = Callable[..., ImageNetDataModule]


def jpeg(number: int, **options: Any) -> bytes:
    name = ("astronaut", "chelsea", "coffee", "rocket")[number % 4]
    image = photograph(name, 160 + 8 * (number % 5), 120 + 7 * (number % 3))
    return encoded(image.convert(options.pop("mode", "RGB")), "JPEG", quality=92, **options)


def lying(number: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return jpeg(number, exif=exif)


def picky(number: int) -> bytes:
    """Behind its pixels it is cut short, which torchvision's decoder does not accept and the CPU's way does."""
    return jpeg(number)[:-2] + b"\xff\xfe\xff\xf0cut short\xff\xd9"


def damaged(number: int) -> bytes:
    """A table behind the first scan makes no sense: no decoder accepts it, and no header tells."""
    whole = jpeg(number, progressive=True)
    table = whole.index(b"\xff\xc4", whole.index(b"\xff\xda"))
    return whole[: table + 5] + b"\xff" * 16 + whole[table + 21 :]


FOR_DEVICE: list[tuple[str, Callable[[int], bytes]]] = [
    ("jpg", jpeg),
    ("jpg", lambda n: jpeg(n, subsampling=0)),
    ("jpg", lambda n: jpeg(n, progressive=True)),
]
FOR_WORKERS: list[tuple[str, Callable[[int], bytes]]] = [
    ("jpg", lambda n: jpeg(n, mode="CMYK")),
    ("jpg", lambda n: jpeg(n, mode="L")),
    ("jpg", lying),
    ("jpg", lambda n: jpeg(n) + b"more"),
    ("png", lambda n: encoded(noise(70 + n, 90, seed=n), "PNG")),
    ("webp", lambda n: encoded(photograph("coffee", 100, 80), "WEBP")),
    ("jpg", lambda n: encoded(noise(8, 8, seed=n), "PNG")),
]
KINDS = [*FOR_DEVICE, *FOR_WORKERS]
BAD: dict[int, Callable[[int], bytes]] = {3: damaged, 4: lambda n: jpeg(n)[:3000], 10: damaged, 11: damaged}
STANDS_IN = {3: 5, 4: 5, 10: 0, 11: 0}
"""In shards of 12 and 10 samples."""


def write(path: Path, numbers: range, special: dict[int, Callable[[int], bytes]] | None = None) -> Path:
    members = []
    for i in numbers:
        extension, make = KINDS[i % len(KINDS)]
        if special and i in special:
            extension, make = "jpg", special[i]
        members += [(f"img_{i}.{extension}", make(i)), (f"img_{i}.cls", str(i % 4).encode())]
    return write_tar(path, members)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Good samples of all kinds, and beside them such as are bad, or as the device alone takes for bad."""
    folder = tmp_path_factory.mktemp("mixed")
    write(folder / "good-0.tar", range(12))
    write(folder / "good-1.tar", range(12, 22))
    write(folder / "bad-0.tar", range(12), BAD)
    write(folder / "bad-1.tar", range(12, 22), {15: picky})
    write(folder / "val-0.tar", range(20))
    write(folder / "badval-0.tar", range(20), {7: damaged})
    return folder


@pytest.fixture
def build(mixed: Path) -> Iterator[Build]:
    made: list[ImageNetDataModule] = []

    def make(decoder: str, train: str = "good", val: str = "val", **changes: Any) -> ImageNetDataModule:
        fields = {
            "train_shards": f"{mixed}/{train}-*.tar",
            "val_shards": f"{mixed}/{val}-*.tar",
            "num_classes": 4,
            "global_batch_size": 4,
            "micro_batch_size": 4,
            "eval_batch_size": 8,
            "num_workers": 0,
            "num_lanes": 2,
            "shuffle_window_shards": 1,
            "decoder": decoder,
        }
        module = ImageNetDataModule(Data.model_validate(fields | changes), seed=3, image_size=SIZE, in_chans=3)
        where = SimpleNamespace(global_rank=0, local_rank=0, world_size=1, global_step=0, current_epoch=0)
        module.trainer = where  # type: ignore[assignment]
        made.append(module)
        module.setup("fit")
        return module

    yield make
    for module in made:
        module.teardown("fit")


def train(module: ImageNetDataModule, device: torch.device = CPU, epochs: int = 2) -> list[Batch]:
    """What training would get on a device."""
    trainer: Any = module.trainer
    batches = []
    for epoch in range(epochs):
        trainer.current_epoch = epoch
        loader = module.train_dataloader()
        batches += [module.transfer_batch_to_device(batch, device, 0) for batch in loader]
        trainer.global_step += len(loader)
    return batches


def evaluate(module: ImageNetDataModule, device: torch.device = CPU) -> list[Batch]:
    return [module.transfer_batch_to_device(batch, device, 0) for batch in module.val_dataloader()]


def assert_alike(found: list[Batch], expected: list[Batch], *, mean: float, each: float) -> None:
    """The same samples in the same places; images that differ by so many grey levels on average."""
    assert len(found) == len(expected)
    differences = []
    for one, other in zip(found, expected, strict=True):
        assert isinstance(one, Batch)
        assert all(torch.equal(a.cpu(), b) for a, b in zip(one[1:], other[1:], strict=True))
        assert one.images.dtype == torch.uint8
        assert one.images.shape == other.images.shape
        assert one.images.is_contiguous(memory_format=torch.channels_last)
        differences.append((one.images.cpu().float() - other.images.float()).abs().mean((1, 2, 3)))
    assert float(torch.cat(differences).mean()) < mean
    assert float(torch.cat(differences).max()) < each


TOLERANCE = {"cpu": {"mean": 0.2, "each": 0.5}, "cuda": {"mean": 1.0, "each": 2.0}}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "random"])
def test_training_gets_what_the_cpu_gives(
    device: str, interpolation: str, build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    changes = {"interpolation": interpolation, "augmentation": Augmentation(vflip=0.5)}
    found = train(build("nvjpeg", **changes), torch.device(device))
    assert_alike(found, train(build("cpu", **changes)), **TOLERANCE[device])
    assert len(torch.cat([batch.samples for batch in found]).unique()) == 22
    assert capfd.readouterr().err == ""  # the device decoded all that was left to it


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_evaluation_gets_what_the_cpu_gives(
    device: str, crop_pct: float, build: Build, capfd: pytest.CaptureFixture[str]
) -> None:
    found = evaluate(build("nvjpeg", crop_pct=crop_pct), torch.device(device))
    assert_alike(found, evaluate(build("cpu", crop_pct=crop_pct)), **TOLERANCE[device])
    assert torch.cat([batch.samples for batch in found]).tolist() == list(range(20))
    assert capfd.readouterr().err == ""


def test_augmentation_switched_off_is_the_same_too(build: Build) -> None:
    off = Augmentation(enabled=False)
    found = train(build("nvjpeg", augmentation=off), epochs=1)
    assert_alike(found, train(build("cpu", augmentation=off), epochs=1), **TOLERANCE["cpu"])


@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_is_timms_within_a_grey_level(device: str, build: Build) -> None:
    batches = evaluate(build("nvjpeg"), torch.device(device))
    images = torch.cat([batch.images for batch in batches]).cpu()
    theirs = create_transform(SIZE, is_training=False, interpolation="bicubic", use_prefetcher=True)
    for number, (_, make) in enumerate(FOR_DEVICE):
        expected = torch.as_tensor(theirs(Image.open(io.BytesIO(make(number)))))
        assert float((images[number].int() - expected.int()).abs().float().mean()) < 1


def test_workers_make_no_difference(build: Build) -> None:
    for split in (train, evaluate):
        alone, together = split(build("nvjpeg", "bad")), split(build("nvjpeg", "bad", num_workers=2))
        assert len(alone) == len(together)
        for one, other in zip(alone, together, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_decode_only_what_the_device_cannot(num_workers: int, build: Build) -> None:
    batches = list(build("nvjpeg", num_workers=num_workers).val_dataloader())
    assert all(isinstance(batch, EncodedBatch) and not batch.training for batch in batches)
    left = [geometry is not None for batch in batches for geometry in batch.geometries]
    assert left == 2 * (len(FOR_DEVICE) * [True] + len(FOR_WORKERS) * [False])
    assert all(sum(batch.lengths) == len(batch.contents) for batch in batches)


# Bad samples


@pytest.mark.parametrize("num_workers", [0, 2])
def test_substitutes_are_those_of_the_cpu(num_workers: int, build: Build, capfd: pytest.CaptureFixture[str]) -> None:
    expected = train(build("cpu", "bad"))
    capfd.readouterr()
    found = train(build("nvjpeg", "bad", num_workers=num_workers))
    told = capfd.readouterr().err
    assert_alike(found, expected, **TOLERANCE["cpu"])
    marked = torch.cat([batch.samples[batch.substituted] for batch in found]).tolist()
    assert sorted(marked) == sorted(2 * list(STANDS_IN.values()))
    assert "bad-0.tar: sample img_3: the device cannot decode it, so the CPU tries\n" in told
    assert "bad-0.tar: sample img_3.jpg: not a readable image (" in told
    assert "bad-1.tar: sample img_15: the device cannot decode it, so the CPU tries\n" in told
    assert "sample img_15.jpg: not a readable image" not in told


def test_what_the_device_alone_refuses_is_the_cpus_to_the_bit(build: Build) -> None:
    found, expected = train(build("nvjpeg", "bad")), train(build("cpu", "bad"))
    pairs = [
        (one.images[at], other.images[at])
        for one, other in zip(found, expected, strict=True)
        for at in (one.samples == 15).nonzero()
    ]
    assert len(pairs) == 2
    assert all(torch.equal(*pair) for pair in pairs)


def test_without_substitution_a_bad_sample_ends_training_with_its_name(build: Build) -> None:
    with pytest.raises(BadSampleError, match=r"bad-0\.tar: sample img_\d+\.jpg: not a readable image \("):
        train(build("nvjpeg", "bad", max_bad_fraction=0.0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_bad_sample_ends_evaluation_with_its_name(num_workers: int, build: Build) -> None:
    module = build("nvjpeg", val="badval", num_workers=num_workers)
    with pytest.raises(DataError, match=r"badval-0\.tar: sample img_7\.jpg: not a readable image \("):
        evaluate(module)


def test_a_device_that_decodes_nothing_is_refused(build: Build) -> None:
    if torch.cuda.is_available():
        pytest.skip("the CUDA device here decodes")
    with pytest.raises(ConfigError) as caught:
        train(build("nvjpeg"), torch.device("cuda", 0))
    (problem,) = caught.value.problems
    assert (problem.key, problem.received) == ("data.decoder", "nvjpeg")
    assert problem.accepted.startswith("cpu: torchvision decodes no JPEG on cuda:0 (")


# Memory


def test_few_pixels_are_decoded_at_once(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(build("nvjpeg"))
    sizes: list[int] = []

    def counting(files: list[torch.Tensor], device: torch.device) -> list[torch.Tensor | None]:
        found = whole(files, device)
        sizes.append(sum(pixels.shape[1] * pixels.shape[2] for pixels in found if pixels is not None))
        return found

    whole = device_decoding.decode
    monkeypatch.setattr(device_decoding, "decode", counting)
    monkeypatch.setattr(device_decoding, "PIXELS_AT_ONCE", 50_000)
    for one, other in zip(train(build("nvjpeg")), expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
    assert max(sizes) <= 50_000
    assert max(sizes) > 192 * 134  # of the largest image: there were some with two


@pytest.mark.parametrize(
    ("size", "image_size"), [((4200, 4100), 512), ((1500, 1300), 64)], ids=["many pixels", "much smaller in the end"]
)
def test_images_too_large_for_the_device_are_decoded_by_workers(size: tuple[int, int], image_size: int) -> None:
    transform = evaluation_transform(Data(train_shards="train", val_shards="val"), image_size)
    image = open_image(encoded(Image.new("RGB", size, (200, 30, 90)), "JPEG"), "RGB")
    assert torch.equal(LeaveEncoded(transform)(image), transform(image))
    assert isinstance(LeaveEncoded(transform)(open_image(jpeg(0), "RGB")), Encoded)


# Lightning


class Recorder(LightningModule):
    """Keeps what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.trained: list[Batch] = []
        self.evaluated: list[Batch] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trained.append(batch)
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.evaluated.append(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def test_lightning_hands_over_decoded_batches_of_both_splits(build: Build, tmp_path: Path) -> None:
    recorders = []
    for decoder in ("nvjpeg", "cpu"):
        recorder = Recorder()
        Trainer(
            accelerator="cpu",
            max_epochs=2,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=tmp_path,
        ).fit(recorder, build(decoder, "bad"))
        recorders.append(recorder)
    found, expected = recorders
    assert_alike(found.trained, expected.trained, **TOLERANCE["cpu"])
    assert_alike(found.evaluated, expected.evaluated, **TOLERANCE["cpu"])
    assert len(found.evaluated) == 2 * 3
