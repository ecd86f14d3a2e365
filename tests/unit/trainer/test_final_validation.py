"""What a run leaves of its last validation, whatever happens to it around its end."""

import io
import json
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn.functional import cross_entropy

from configs.load import load_config
from configs.problems import DataError
from configs.run import RunDirectory
from datamodules.images.decoding import open_image
from datamodules.indexing.opening import open_index
from datamodules.indexing.splits import open_split, shard_cache
from datamodules.indexing.urls import find_shards
from datamodules.storage.cache import ShardCache
from datamodules.storage.locations import Url
from datamodules.storage.remote import Remote
from datamodules.streaming.loaders import Batch
from datamodules.streaming.order import evaluation_slice
from datamodules.streaming.shard_reader import ShardReader
from datamodules.streaming.transforms import evaluation_transform
from tests.unit.trainer.runs import as_killed_after, average, new_run, train, weights
from tests.web import FaultyServer
from trainer.assembly import build_module
from trainer.evaluation import final
from trainer.evaluation.extremes import KINDS, SIDE, Examples, Extremes
from trainer.evaluation.final import FinalValidation
from trainer.evaluation.pictures import described, encoded
from trainer.evaluation.samples import Outputs

Overrides = Callable[..., list[str]]


def found(run: RunDirectory) -> dict[str, Any]:
    """What was written of the last validation."""
    return dict(json.loads((run.path / "validation.json").read_text()))


def kept(run: RunDirectory) -> list[str]:
    """Files of outputs that nothing was made of yet."""
    return sorted(path.name for path in (run.path / "validation").glob("outputs*"))


def moved(result: dict[str, Any]) -> dict[str, Any]:
    """Without the place of the run."""
    return {**result, "checkpoint": Path(result["checkpoint"]).name}


def forget(run: RunDirectory) -> RunDirectory:
    """Without what was written."""
    (run.path / "validation.json").unlink()
    return run


def as_killed_before_telling(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, *, attempt: int = 0) -> None:
    """Train to the last checkpoint, and no further."""
    with monkeypatch.context() as patched:
        patched.setattr(FinalValidation, "tell", lambda *_: None)
        train(run, attempt=attempt)


def test_worst_and_best_are_those_of_the_networks_own_losses_with_the_pixels_it_saw(trained: RunDirectory) -> None:
    config, result = trained.load_config(), found(trained)
    cache = shard_cache(config.data)
    index = open_split(find_shards(config.data.val_shards, cache.remote), cache=cache)
    with closing(ShardReader(index)) as reader:
        raw = [reader.read(sample) for sample in range(len(index))]
    transform = evaluation_transform(config.data, 64)
    images = torch.stack([transform(open_image(each["png"], "RGB")) for each in raw])

    assert [each["weights"] for each in result["results"]] == ["raw", "ema"]
    for part, state in zip(result["results"], (weights(trained, 17), average(trained, 17)), strict=True):
        module = build_module(config)
        module.network.load_state_dict(state)
        with torch.no_grad():
            logits = module.eval()(images)
        losses = cross_entropy(logits, torch.tensor(index.labels), reduction="none").double()
        probabilities = logits.softmax(1)
        order = losses.argsort(stable=True).tolist()
        for kind, samples in (("worst", order[::-1][:3]), ("best", order[:3])):
            assert [each["sample"] for each in part[kind]] == samples
            for each in part[kind]:
                sample = each["sample"]
                assert (each["label"], each["key"]) == (index.labels[sample], raw[sample]["__key__"])
                assert each["shard"] == raw[sample]["__url__"]
                assert each["predicted"] == int(logits[sample].argmax())
                assert each["loss"] == pytest.approx(float(losses[sample]), rel=1e-3)
                assert each["confidence"] == pytest.approx(float(probabilities[sample].max()), rel=1e-3)
                own = float(probabilities[sample, each["label"]])
                assert each["label_probability"] == pytest.approx(own, rel=1e-3)
                with Image.open(trained.path / each["picture"]) as picture:
                    np.testing.assert_array_equal(np.asarray(picture), images[sample].permute(1, 2, 0).numpy())
    pictures = {each["picture"] for part in result["results"] for kind in KINDS for each in part[kind]}
    assert {f"validation/pictures/{file.name}" for file in (trained.path / "validation/pictures").iterdir()} == pictures


def test_a_run_finds_what_validating_it_finds(trained: RunDirectory, tmp_path: Path) -> None:
    from tests.unit.trainer.test_evaluation import evaluate
    from trainer.evaluation.command import Request

    validated, _ = evaluate(Request(run=trained.path, out=tmp_path))

    assert found(trained) == validated
    files = {path.relative_to(tmp_path) for path in (tmp_path / "validation").rglob("*.*")}
    assert files == {path.relative_to(trained.path) for path in (trained.path / "validation").rglob("*.*")}
    assert kept(trained) == []


def test_a_run_killed_before_its_last_checkpoint_tells_the_same(trained: RunDirectory, tmp_path: Path) -> None:
    again = forget(as_killed_after(trained, tmp_path, step=15))

    train(again, attempt=1)

    assert moved(found(again)) == moved(found(trained))


def test_a_run_killed_after_its_last_checkpoint_tells_what_it_had_found(
    trained: RunDirectory, toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = forget(as_killed_after(trained, tmp_path, step=15))
    as_killed_before_telling(again, monkeypatch, attempt=1)
    assert kept(again) == ["outputs-0.npz"]
    assert not (again.path / "validation.json").exists()

    def validate_again(*_: object) -> None:
        pytest.fail("the network was asked again")

    monkeypatch.setattr("trainer.module.EfficientNetModule.validation_step", validate_again)
    train(again, attempt=2)

    assert moved(found(again)) == moved(found(trained))
    assert kept(again) == []
    forget(again)
    train(again, attempt=3)
    assert not (again.path / "validation.json").exists()  # all was told, and somebody may have validated since


def test_what_kills_a_run_while_it_tells_does_so_twice_at_most(
    trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = forget(as_killed_after(trained, tmp_path, step=15))

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("trainer.evaluation.results.write", killed)
    for attempt in (1, 2):
        with pytest.raises(KeyboardInterrupt):
            train(again, attempt=attempt)
        assert kept(again) == [f"outputs-{attempt}.npz"]
    train(again, attempt=3)

    assert kept(again) == []


@pytest.mark.parametrize(
    ("what", "says"),
    [("trainer.evaluation.extremes.Extremes.add", "out of memory"), ("trainer.evaluation.results.write", "no room")],
)
def test_a_failure_is_said_and_the_run_ends_well(
    what: str, says: str, trained: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    again = forget(as_killed_after(trained, tmp_path, step=15))

    def fail(*_: object, **__: object) -> None:
        raise OSError(says)

    monkeypatch.setattr(what, fail)
    train(again, attempt=1)

    assert f"is not kept: OSError: {says}" in caplog.text
    assert again.latest_checkpoint() == "step-000000017"
    assert not (again.path / "validation.json").exists()


def test_a_folder_that_cannot_be_written_is_in_nobodys_way(
    trained: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = as_killed_after(trained, tmp_path, step=15)
    (again.path / "validation").rename(again.path / "aside")
    (again.path / "validation").write_text("a file")

    train(again, attempt=1)

    assert "is not kept: FileExistsError" in caplog.text
    assert again.latest_checkpoint() == "step-000000017"


def test_curves_that_cannot_be_drawn_do_not_take_the_end_back(
    trained: RunDirectory, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    again = as_killed_after(trained, tmp_path, step=15)
    (again.path / "curves.png").unlink()
    (again.path / "curves.png").mkdir()

    train(again, attempt=1)

    assert "curves.png is not drawn: IsADirectoryError" in caplog.text
    assert again.latest_checkpoint() == "step-000000017"


def test_nothing_is_written_where_it_is_not_wanted_or_there_is_too_much(
    toy_overrides: Overrides, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = new_run(toy_overrides(trainer__max_steps=1, tracking__examples=None), tmp_path)
    train(run)
    assert not (run.path / "validation.json").exists()

    with monkeypatch.context() as little:
        little.setattr(final, "MOST_SAMPLES", 1)
        run.freeze(load_config([str(run.config_file)], ["tracking.examples=0", "trainer.max_steps=2"]).config)
        train(run, attempt=1)
    assert not (run.path / "validation.json").exists()

    run.freeze(load_config([str(run.config_file)], ["trainer.max_steps=3"]).config)
    train(run, attempt=2)
    assert found(run)["step"] == 3
    assert [found(run)["results"][0][kind] for kind in KINDS] == [[], []]
    assert not (run.path / "validation" / "pictures").exists()


def test_keys_are_not_asked_for_where_a_server_is_away(shards: Path, tmp_path: Path) -> None:
    server = FaultyServer(shards)
    cache = ShardCache(folder=tmp_path / "cache", max_bytes=10**8, remote=Remote(attempts=1, timeout_s=5.0))
    urls = [Url(server.url(f"toy-validation-{number:05d}.tar")) for number in range(2)]
    index = open_index(urls, index_dir=str(tmp_path / "indexes"), cache=cache)
    outputs = Outputs(index.labels, np.zeros((37, 4), dtype=np.int64), np.full(37, 0.5), np.arange(37.0))
    examples = Examples(np.array([3, 30]), np.zeros((2, 3, 8, 8), dtype=np.uint8), np.array([True, False]))
    there = described({"worst": examples}, outputs, index, cache)["worst"]
    server.always |= {f"/{url.name}": "503" for url in urls}
    server.requests.clear()
    away = described({"worst": examples}, outputs, index, cache)["worst"]
    server.close()

    assert [each.sample for each in away] == [3, 30]
    assert all(each.key and each.key.startswith("img_") for each in there)
    assert server.requests.total() == 1  # for two keys
    assert away == [replace(each, key=None) for each in there]
    assert [each.picture is None for each in away] == [False, True]
    assert away[1].label_probability == pytest.approx(np.exp(-30))


def test_a_run_on_a_list_of_signed_urls_is_refused_and_no_file_of_it_has_a_signature(
    shards: Path, toy_overrides: Overrides, tmp_path: Path
) -> None:
    server, secret = FaultyServer(shards), token_hex()  # which no uncommitted.diff has
    names = [f"toy-validation-{number:05d}.tar" for number in range(2)]
    listed = tmp_path / "validation.txt"
    listed.write_text("".join(f"{server.url(name)}?X-Amz-Signature={secret}\n" for name in names))
    places = {"data__index_dir": tmp_path / "indexes", "data__cache_dir": tmp_path / "cache"}
    run = new_run(toy_overrides(data__val_shards=listed, **places, trainer__max_steps=1), tmp_path)
    with pytest.raises(DataError, match="URLs without passwords, tokens and signatures") as refused:
        train(run)
    server.close()

    assert server.requests.total() == 0
    assert secret not in str(refused.value)
    files = [file for file in run.path.rglob("*") if file.is_file()]
    assert run.config_file in files
    assert [file for file in files if secret.encode() in file.read_bytes()] == []


@given(
    st.lists(st.sampled_from([0.0, 0.25, 1.0, 7.5, float("inf"), float("nan")]), min_size=1, max_size=40),
    st.integers(1, 4), st.integers(1, 5), st.integers(1, 6),
)  # fmt: skip
def test_several_ranks_have_the_extremes_that_one_has(
    values: list[float], world_size: int, batch_size: int, count: int
) -> None:
    losses = torch.tensor(values)
    images = torch.arange(len(values) * 12, dtype=torch.uint8).view(len(values), 3, 2, 2)
    parts: list[list[torch.Tensor]] = []

    for rank in range(world_size):
        first, last, length = evaluation_slice(len(values), global_rank=rank, world_size=world_size)
        extremes, sent = Extremes(count), list[torch.Tensor]()
        for low in range(first, first + length, batch_size):
            places = torch.arange(low, min(low + batch_size, first + length))
            samples = places.clamp(max=len(values) - 1)
            batch = Batch(images[samples], samples, samples, (places < last).float(), torch.zeros(len(places)))
            extremes.add(losses[samples], batch)
        found = extremes.gather(losses.double(), (3, 2, 2), lambda tensor, sent=sent: sent.append(tensor) or tensor)
        parts.append(sent)

    for number, kind in enumerate(KINDS):
        ranked = losses.sort(stable=True, descending=kind == "worst").indices[:count]
        assert found[kind].samples.tolist() == ranked.tolist()
        pixels, there = (sum(sent[2 * number + part] for sent in parts) for part in range(2))
        seen = there == 1
        torch.testing.assert_close(pixels[seen], images[ranked][seen])
        assert bool(seen[losses[ranked].isfinite() | losses[ranked].isnan() & (kind == "worst")].all())


def test_pictures_are_small_and_in_the_images_own_channels() -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (1, 3, 600, 400), generator=generator, dtype=torch.uint8)
    extremes = Extremes(1)
    extremes.add(torch.ones(1), Batch(images, torch.zeros(1), torch.zeros(1).long(), torch.ones(1), torch.zeros(1)))
    small = extremes.gather(torch.ones(1), (3, 600, 400), lambda tensor: tensor)["worst"].images[0]

    assert small.shape == (3, SIDE, round(SIDE * 400 / 600))
    for channels, side, mode, kind in ((3, 224, "RGB", "JPEG"), (1, 100, "L", "JPEG"), (4, 100, "RGBA", "PNG")):
        pixels = np.random.default_rng(0).integers(0, 256, (channels, side, side), dtype=np.uint8)
        with Image.open(io.BytesIO(encoded(pixels))) as picture:
            assert (picture.size, picture.mode, picture.format) == ((side, side), mode, kind)
