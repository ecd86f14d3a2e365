"""Epochs from real servers on loopback: HTTP that fails in every way, S3 (moto's), Google's API and the Hub's."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from configs.problems import DataError, UnreachableError
from configs.schema import Data
from datamodules.imagenet import ImageNetDataModule
from datamodules.storage import failures, filesystems
from datamodules.streaming.loaders import Batch
from tests.clouds import gs_server, hf_server
from tests.conftest import NUM_CLASSES
from tests.integration.runs import losses, train
from tests.ports import free_port
from tests.s3 import s3_server
from tests.web import FaultyServer

SAMPLES, VALIDATION_SAMPLES = 129, 37
Build = Callable[..., ImageNetDataModule]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def server(shards: Path) -> Iterator[FaultyServer]:
    made = FaultyServer(shards)
    yield made
    made.close()


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    """Makes data modules of one rank, set up at the start of a run."""
    made: list[ImageNetDataModule] = []

    def make(
        place: str,
        *,
        train: str = "_info.json#train",
        val: str = "_info.json#validation",
        local_rank: int = 0,
        **changes: Any,
    ) -> ImageNetDataModule:
        fields = {
            "train_shards": f"{place}{train}",
            "val_shards": f"{place}{val}",
            "num_classes": NUM_CLASSES,
            "global_batch_size": 16,
            "micro_batch_size": 4,
            "eval_batch_size": 8,
            "num_workers": 0,
            "num_lanes": 4,
            "shuffle_window_shards": 2,
            "index_dir": str(tmp_path / "indexes"),
            "cache_dir": str(tmp_path / "cache"),
            "download_attempts": 4,
            "download_timeout_s": 5.0,
        }
        module = ImageNetDataModule(Data.model_validate(fields | changes), seed=0, image_size=16, in_chans=3)
        module.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=0, local_rank=local_rank, world_size=1, global_step=0, current_epoch=0, num_nodes=1
        )
        made.append(module)
        if local_rank == 0:  # as Lightning does
            module.prepare_data()
        module.setup("fit")
        return module

    yield make
    for module in made:
        module.teardown("fit")


def epochs(module: ImageNetDataModule, count: int = 1) -> list[Batch]:
    trainer: Any = module.trainer
    batches = []
    for epoch in range(count):
        trainer.current_epoch = epoch
        loader = module.train_dataloader()
        batches += list(loader)
        trainer.global_step += len(loader) // module.layout.accumulate_grad_batches
    return batches


def assert_equal(found: list[Batch], expected: list[Batch]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            assert torch.equal(a, b)


def counted(module: ImageNetDataModule) -> list[int]:
    return sorted(s for batch in module.val_dataloader() for s in batch.samples[batch.weights == 1].tolist())


@pytest.fixture
def expected(build: Build, shards: Path, tmp_path: Path) -> list[Batch]:
    """Two epochs from the local files."""
    return epochs(build(f"{shards}/", index_dir=str(tmp_path / "local")), 2)


def empty(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_epochs_over_http_hold_each_sample_once_in_the_local_order(
    num_workers: int, build: Build, expected: list[Batch], server: FaultyServer, tmp_path: Path
) -> None:
    module = build(server.url(), num_workers=num_workers)
    empty(tmp_path / "cache")
    server.requests.clear()
    found = epochs(module, 2)
    assert_equal(found, expected)
    samples = [sample for batch in found for sample in batch.samples.tolist()]
    assert all(samples.count(sample) in (2, 3) for sample in range(SAMPLES))  # the last batch spans the seam
    assert counted(module) == list(range(VALIDATION_SAMPLES))
    assert [server.gets(f"toy-train-{i:05d}.tar") for i in range(5)] == [1] * 5
    assert [server.gets(f"toy-validation-{i:05d}.tar") for i in range(2)] == [1] * 2


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_from_a_failing_server_is_whole(
    num_workers: int, build: Build, expected: list[Batch], server: FaultyServer, tmp_path: Path
) -> None:
    module = build(server.url(), num_workers=num_workers, download_timeout_s=1.0)
    empty(tmp_path / "cache")
    for i, faults in enumerate((["503", "503"], ["stall"], ["truncate", "reset"], ["reset"], ["short", "500"])):
        server.faults[f"/toy-train-{i:05d}.tar"] = faults
    assert_equal(epochs(module, 2), expected)
    assert all(not faults for faults in server.faults.values())


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("fault", ["503", "truncate", "reset"])
def test_an_epoch_from_a_server_that_fails_for_good_fails_with_url_attempts_and_last_error(
    fault: str, num_workers: int, build: Build, server: FaultyServer, tmp_path: Path
) -> None:
    module = build(server.url(), num_workers=num_workers, download_attempts=2)
    empty(tmp_path / "cache")
    server.always["/toy-train-00003.tar"] = fault
    with pytest.raises(UnreachableError, match=r"/toy-train-00003\.tar: 2 attempts failed, the last with \w+: "):
        epochs(module)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_shard_that_changes_in_mid_epoch_ends_it(
    num_workers: int, build: Build, shards: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    server = FaultyServer(copy)
    module = build(server.url(), num_workers=num_workers)
    empty(tmp_path / "cache")
    (copy / "toy-train-00002.tar").write_bytes((copy / "toy-train-00001.tar").read_bytes())
    with pytest.raises(DataError, match=r"toy-train-00002\.tar: the shard has changed since it was indexed"):
        epochs(module)
    server.close()


def test_a_cache_smaller_than_the_data_gives_the_same_epochs(
    build: Build, expected: list[Batch], server: FaultyServer, shards: Path, tmp_path: Path
) -> None:
    largest = max(file.stat().st_size for file in shards.glob("*.tar"))
    module = build(server.url(), num_workers=2, cache_bytes=5 * largest, shuffle_window_shards=1, num_lanes=4)
    expected = epochs(build(f"{shards}/", shuffle_window_shards=1, index_dir=str(tmp_path / "local")), 2)
    assert_equal(epochs(module, 2), expected)
    assert sum(file.stat().st_size for file in (tmp_path / "cache").iterdir()) <= 5 * largest


@pytest.mark.parametrize("prefetch_shards", [0, 16])
def test_workers_that_wait_give_way_in_a_cache_that_holds_no_more_than_is_needed(
    prefetch_shards: int, build: Build, server: FaultyServer, shards: Path, expected: list[Batch]
) -> None:
    size = max(path.stat().st_size for path in shards.glob("toy-train-*.tar"))
    changes = {"num_workers": 2, "prefetch_batches": 2, "prefetch_shards": prefetch_shards, "cache_bytes": 5 * size}
    module = build(server.url(), shuffle_window_shards=2, download_timeout_s=20.0, **changes)
    assert_equal(epochs(module, 2), expected)


def test_a_cache_too_small_for_the_shuffle_is_refused_before_training(build: Build, server: FaultyServer) -> None:
    with pytest.raises(DataError, match=r"data\.cache_bytes is 200,000, but a node reads 5 shards at once .* at least"):
        build(server.url(), cache_bytes=200_000)


def test_two_runs_on_a_node_fetch_each_shard_once(
    build: Build, expected: list[Batch], server: FaultyServer, tmp_path: Path
) -> None:
    modules = [build(server.url(), num_workers=1) for _ in range(2)]
    empty(tmp_path / "cache")
    server.requests.clear()
    server.delay_s = 0.2
    streams = [module.train_dataloader() for module in modules]
    for pair in zip(*streams, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(*pair, strict=True))
    assert [server.gets(f"toy-train-{i:05d}.tar") for i in range(5)] == [1] * 5


def test_the_ranks_of_a_node_fetch_each_shard_once(
    toy_overrides: Callable[..., list[str]], server: FaultyServer, tmp_path: Path
) -> None:
    places = {
        "trainer.devices": 2,
        "trainer.max_epochs": 1,
        "data.num_workers": 1,
        "data.train_shards": server.url("_info.json#train"),
        "data.val_shards": server.url("_info.json#validation"),
        "data.index_dir": tmp_path / "indexes",
        "data.cache_dir": tmp_path / "cache",
    }
    run = train(toy_overrides(**places), runs_dir=tmp_path, run_id="distant")
    assert len(losses(run)) == 9
    assert [server.gets(f"toy-train-{i:05d}.tar") for i in range(5)] == [1] * 5
    # Before the scan, and after the download.
    assert [server.requests["HEAD", f"/toy-train-{i:05d}.tar"] for i in range(5)] == [2] * 5
    server.requests.clear()
    train(toy_overrides(**places), runs_dir=tmp_path, run_id="again")
    assert [server.requests["HEAD", f"/toy-train-{i:05d}.tar"] for i in range(5)] == [1] * 5


def test_a_first_index_that_takes_longer_than_a_collective_may_holds_nobody_up(
    toy_overrides: Callable[..., list[str]], server: FaultyServer, tmp_path: Path
) -> None:
    """The first rank scans for at least 40 s, first one split and then the other, while its peer waits."""
    server.delay_s = 20.0
    places = {
        "trainer.devices": 2,
        "trainer.max_epochs": 1,
        "fault.timeout_s": 15,
        "data.num_workers": 1,
        "data.train_shards": server.url("toy-train-{00000..00004}.tar"),
        "data.val_shards": server.url("toy-validation-{00000..00001}.tar"),
        "data.index_dir": tmp_path / "indexes",
        "data.cache_dir": tmp_path / "cache",
    }
    run = train(toy_overrides(**places), runs_dir=tmp_path, run_id="patient")
    assert len(losses(run)) == 9
    assert [outcome["exit_class"] for outcome in run.outcomes()] == ["done"]
    assert server.most_running == 5


def test_a_node_asks_once_for_each_shard_and_its_other_ranks_never(build: Build, server: FaultyServer) -> None:
    first = build(server.url())
    server.requests.clear()
    modules = [build(server.url()), *(build(server.url(), local_rank=rank) for rank in (1, 2))]
    heads = {path: count for (method, path), count in server.requests.items() if method == "HEAD" and "tar" in path}
    assert list(heads.values()) == [1] * 7
    for module in modules:
        assert module.train_index.digest == first.train_index.digest
        assert module.train_index.shard_tags == first.train_index.shard_tags


def test_a_rank_that_finds_no_index_makes_it(build: Build, server: FaultyServer, tmp_path: Path) -> None:
    first = build(server.url())
    empty(tmp_path / "indexes")
    assert build(server.url(), local_rank=1).train_index.digest == first.train_index.digest


def test_a_shard_that_changed_is_indexed_anew_at_the_next_start(build: Build, shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in shards.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    server = FaultyServer(copy)
    tags = build(server.url()).train_index.shard_tags
    shard = copy / "toy-train-00002.tar"
    shard.write_bytes(shard.read_bytes() + bytes(10240))  # a tar may end in more of nothing
    assert build(server.url(), local_rank=1).train_index.shard_tags == tags  # what the first process has vouched for
    assert [old == new for old, new in zip(tags, build(server.url()).train_index.shard_tags, strict=True)] == [
        True,
        True,
        False,
        True,
        True,
    ]
    server.close()


def test_a_run_whose_server_is_away_ends_to_be_retried(
    toy_overrides: Callable[..., list[str]], server: FaultyServer, tmp_path: Path
) -> None:
    server.always["/toy-train-00000.tar"] = "503"
    places = {
        "data.train_shards": server.url("_info.json#train"),
        "data.index_dir": tmp_path / "indexes",
        "data.cache_dir": tmp_path / "cache",
        "data.download_attempts": 2,
    }
    run = train(toy_overrides(**places), runs_dir=tmp_path, run_id="away", expected=1)
    [outcome] = run.outcomes()
    assert outcome["exit_class"] == "retry"
    assert f"{server.url('toy-train-00000.tar')}: 2 attempts failed" in outcome["reason"]


# S3


@pytest.fixture(scope="module")
def s3(shards: Path) -> Iterator[str]:
    """A bucket with the shards, on a real S3 API; the URL of its folder."""
    with s3_server("images") as server:
        for file in shards.iterdir():
            if not file.name.startswith("."):
                server.client().upload_file(str(file), "images", f"toy/{file.name}")
        yield "s3://images/toy/"


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("train_shards", "val_shards"),
    [
        ("toy-train-{00000..00004}.tar", "toy-validation-*.tar"),
        ("_info.json#train", "#validation"),
    ],
)
def test_epochs_from_s3_are_those_of_local_files(
    train_shards: str, val_shards: str, num_workers: int, build: Build, expected: list[Batch], s3: str
) -> None:
    module = build(s3, train=train_shards, val=val_shards, num_workers=num_workers)
    assert_equal(epochs(module, 2), expected)
    assert counted(module) == list(range(VALIDATION_SAMPLES))


def test_a_folder_in_s3_stands_for_its_tars(build: Build, s3: str) -> None:
    module = build(s3, train="", val="#validation")
    assert [str(url) for url in module.train_index.shards] == [
        *(f"{s3}toy-train-{i:05d}.tar" for i in range(5)),
        *(f"{s3}toy-validation-{i:05d}.tar" for i in range(2)),
    ]


def test_a_bucket_or_shard_that_is_not_there_is_a_data_error(build: Build, s3: str) -> None:
    for place, what in (("s3://gone/", "gone"), (s3, r"toy-train-00099\.tar")):
        with pytest.raises(DataError, match=what):
            build(place, train="toy-train-00099.tar", val="toy-validation-{00000..00001}.tar")


def test_an_s3_server_that_is_away_is_unreachable(build: Build, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    filesystems._filesystem_of.cache_clear()
    try:
        with pytest.raises(UnreachableError, match="1 attempt failed, the last with"):
            build(s3, train="toy-train-{00000..00004}.tar", download_attempts=1)
    finally:
        filesystems._filesystem_of.cache_clear()


def test_the_index_command_indexes_remote_shards(s3: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "datamodules", "index", f"{s3}_info.json#train"]
    options = ["--index-dir", str(tmp_path / "indexes"), "--cache-dir", str(tmp_path / "cache")]
    done = subprocess.run([*command, *options], capture_output=True, text=True, timeout=60, env=os.environ.copy())
    assert done.returncode == 0, done.stderr
    assert "129 samples in 5 shards" in done.stderr


# Google Cloud Storage and Hugging Face's Hub


class Cloud(NamedTuple):
    server: Any
    url: str
    media: str


@pytest.fixture(params=["gs", "hf"])
def cloud(request: pytest.FixtureRequest, shards: Path, tmp_path: Path) -> Iterator[Cloud]:
    """The shards in a folder of a bucket, or of a data set."""
    root = tmp_path / "served"
    inside = f"{'images/' if request.param == 'gs' else ''}toy/"
    (root / inside).mkdir(parents=True)
    for file in shards.iterdir():
        if not file.name.startswith("."):
            (root / inside / file.name).write_bytes(file.read_bytes())
    with (gs_server if request.param == "gs" else hf_server)(root) as (server, place):
        media = "/download/storage/v1/b/images/o/toy/" if request.param == "gs" else "/cdn/toy/"
        yield Cloud(server, f"{place}{inside}", media)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("train_shards", "val_shards"),
    [("toy-train-{00000..00004}.tar", "toy-validation-*.tar"), ("_info.json#train", "#validation")],
)
def test_epochs_from_a_cloud_are_those_of_local_files(
    train_shards: str, val_shards: str, num_workers: int, build: Build, expected: list[Batch], cloud: Cloud
) -> None:
    module = build(cloud.url, train=train_shards, val=val_shards, num_workers=num_workers)
    found = epochs(module, 2)
    assert_equal(found, expected)
    samples = [sample for batch in found for sample in batch.samples.tolist()]
    assert all(samples.count(sample) in (2, 3) for sample in range(SAMPLES))
    assert counted(module) == list(range(VALIDATION_SAMPLES))
    assert [cloud.server.gets(f"{cloud.media[1:]}toy-train-{i:05d}.tar") for i in range(5)] == [1] * 5


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_from_a_failing_cloud_is_whole(
    num_workers: int, build: Build, expected: list[Batch], cloud: Cloud, tmp_path: Path
) -> None:
    module = build(cloud.url, num_workers=num_workers, val="#validation")
    empty(tmp_path / "cache")
    for i, faults in enumerate((["503", "503"], ["truncate"], ["reset", "503"], ["500"], ["503"])):
        cloud.server.faults[f"{cloud.media}toy-train-{i:05d}.tar"] = faults
    assert_equal(epochs(module, 2), expected)
    assert all(not faults for faults in cloud.server.faults.values())


def test_a_shard_whose_checksum_is_not_the_clouds_ends_the_epoch(build: Build, cloud: Cloud, tmp_path: Path) -> None:
    module = build(cloud.url, download_attempts=2)
    empty(tmp_path / "cache")
    cloud.server.wrong_md5 = cloud.server.wrong_sha256 = True
    with pytest.raises(UnreachableError, match=r"2 attempts failed, the last with EOFError: (md5|sha256) is "):
        epochs(module)


def test_a_shard_that_a_cloud_lacks_is_one_clear_error(build: Build, cloud: Cloud) -> None:
    with pytest.raises(DataError, match=r"toy-train-00099\.tar: FileNotFoundError"):
        build(cloud.url, train="toy-train-{00000..00004}.tar::" + cloud.url + "toy-train-00099.tar")
