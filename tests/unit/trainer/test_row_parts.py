"""What rows have of loaders and of nodes: with a real server, and with two ranks as two machines."""

import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch

from configs.run import RunDirectory
from datamodules.storage import failures
from tests.unit.trainer.processes import run_ranks
from tests.unit.trainer.runs import new_run, rows, train
from tests.web import FaultyServer
from trainer import node_metrics
from trainer.assembly import build_datamodule
from trainer.loader_rates import LoaderRates
from trainer.node_metrics import summary
from trainer.processes import Processes

Overrides = Callable[..., list[str]]
OF_NETWORK = {
    "data/network_mb_per_second",
    "data/cache_hit_share",
    "data/cache_misses",
    "data/cache_evictions",
    "data/download_wait_share",
}


@pytest.fixture
def server(shards: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyServer]:
    monkeypatch.setattr(failures, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    made = FaultyServer(shards)
    yield made
    made.close()


@pytest.fixture
def remote(toy_overrides: Overrides, server: FaultyServer, tmp_path: Path) -> Overrides:
    """Overrides of a run on shards of the server."""

    def overrides(**changes: object) -> list[str]:
        places = {"data__cache_dir": tmp_path / "cache", "data__index_dir": tmp_path / "indexes"}
        return toy_overrides(
            data__train_shards=server.url("_info.json#train"),
            data__val_shards=server.url("_info.json#validation"),
            **places,
            **changes,
        )

    return overrides


@pytest.mark.parametrize("num_workers", [0, 2])
def test_loaders_count_what_they_fetch_and_read(
    num_workers: int, remote: Overrides, server: FaultyServer, tmp_path: Path
) -> None:
    config = new_run(remote(data__num_workers=num_workers, data__prefetch_shards=0), tmp_path).load_config()
    module = build_datamodule(config, "cpu")
    module.trainer = SimpleNamespace(  # type: ignore[assignment]
        global_rank=0, local_rank=0, world_size=1, global_step=0, current_epoch=0, num_nodes=1
    )
    module.prepare_data()
    module.setup("fit")
    for file in (tmp_path / "cache").iterdir():  # where indexing has put them
        file.unlink()
    server.sent.clear()
    server.faults["/toy-train-00001.tar"] = ["truncate"]
    server.delay_s = 0.1
    trainer: Any = SimpleNamespace(datamodule=module, world_size=1)
    rates = LoaderRates()
    rates.start(trainer)

    samples = sorted(s for batch in module.val_dataloader() for s in batch.samples[batch.weights == 1].tolist())
    assert samples == list(range(37))
    after_validation = module.traffic
    batches = list(module.train_dataloader())
    module.teardown("fit")

    sent = sum(size for path, size in server.sent.items() if path.endswith(".tar"))
    values = rates.values(trainer)
    network, disk, hits, misses, evictions, waited_s, workers_s = values
    assert network == sent
    assert after_validation.disk_bytes >= int(module.val_index.sizes.sum())
    read = sum(int(module.train_index.sizes[batch.samples].sum()) for batch in batches)
    trained = disk - after_validation.disk_bytes
    assert trained >= read  # workers run ahead
    if num_workers == 0:
        assert trained == read
        assert misses == 7  # five shards and two of validation, each once
    assert misses >= 7
    assert hits > 0
    assert waited_s >= 7 * 0.1
    assert evictions == 0
    row = rates.row(trainer, [2 * value for value in values])  # as if another rank had done the same
    assert row["data/network_mb_per_second"] == pytest.approx(2 * sent / 1e6 * max(num_workers, 1) / workers_s)
    assert row["data/disk_mb_per_second"] == pytest.approx(2 * disk / 1e6 * max(num_workers, 1) / workers_s)
    assert row["data/cache_hit_share"] == pytest.approx(hits / (hits + misses))
    assert row["data/cache_misses"] == 2 * misses
    assert row["data/download_wait_share"] == pytest.approx(min(waited_s / workers_s, 1))
    assert rates.values(trainer)[:6] == [0.0] * 6  # since then


def test_shards_that_give_way_are_counted(remote: Overrides, shards: Path, tmp_path: Path) -> None:
    size = max(file.stat().st_size for file in shards.glob("*.tar"))
    changes = {"data__cache_bytes": 4 * size, "data__num_lanes": 1, "trainer__max_epochs": 2}
    run = train(new_run(remote(**changes), tmp_path / "runs"))

    found = [row for row in rows(run) if row["train/loss"]]
    assert sum(float(row["data/cache_evictions"]) for row in found) >= 3  # of seven shards
    assert sum(float(row["data/network_mb_per_second"]) for row in found) > 0


def test_a_run_on_local_shards_has_the_rate_of_its_disk_alone(trained: RunDirectory) -> None:
    for row in rows(trained):
        assert not OF_NETWORK & row.keys()
        if row["train/loss"]:
            assert float(row["data/disk_mb_per_second"]) > 0


def test_a_row_has_this_machine(trained: RunDirectory) -> None:
    found = [row for row in rows(trained) if row["train/loss"]]
    last = found[-1]
    assert {name for name in last if name.startswith("system/")} == {
        f"system/node0/{name}"
        for name in (
            "cpu_percent",
            "memory_percent",
            "disk_free_gb",
            "network_received_mb_per_second",
            "network_sent_mb_per_second",
        )
    }
    assert all(0 <= float(row["system/node0/cpu_percent"]) <= 100 for row in found)
    assert 0 < float(last["system/node0/memory_percent"]) < 100
    size_gb = psutil.disk_usage(str(trained.path)).total / 1e9
    assert 0 < float(last["system/node0/disk_free_gb"]) < size_gb


TWO_NODES = """
import json, os, sys
rank = int(os.environ["RANK"])
os.environ |= {{"LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1", "GROUP_RANK": os.environ["RANK"]}}
import psutil
import trainer.fit
from pathlib import Path
from rich.console import Console
from configs.run import RunDirectory
from datamodules.imagenet import ImageNetDataModule
from trainer.loader_rates import LoaderRates
from trainer.processes import Processes
from trainer.signals import StopFlag

psutil.cpu_percent = lambda: 10.0 + rank
modules, sums, row = [], [], LoaderRates.row
def kept(self, trainer, found):
    modules.append(trainer.datamodule)
    sums.append(found[1])
    return row(self, trainer, found)
LoaderRates.row = kept
run, console = RunDirectory(Path({path!r})), Console(file=sys.stderr)
trainer.fit.fit(run, attempt=0, flag=StopFlag(), processes=Processes.from_environment(), console=console)
print(json.dumps([sum(sums), modules[0]._pipelines.traffic[True].total().disk_bytes]))
"""


def test_rows_have_both_of_two_nodes_and_the_sums_of_their_loaders(toy_overrides: Overrides, tmp_path: Path) -> None:
    changes = {"trainer__devices": 1, "trainer__num_nodes": 2, "trainer__max_steps": 3, "trainer__strategy": "ddp"}
    run = new_run(toy_overrides(**changes, trainer__check_val_every_n_epoch=9), tmp_path)
    (sums, one), (same, other) = run_ranks(TWO_NODES.format(path=str(run.path)), world_size=2)

    found = [row for row in rows(run) if row["train/loss"]]
    assert [float(row["system/node0/cpu_percent"]) for row in found] == [10.0] * 3
    assert [float(row["system/node1/cpu_percent"]) for row in found] == [11.0] * 3
    assert min(one, other) > 0
    assert sums == same == one + other


def test_of_more_nodes_than_have_columns_rows_have_the_extremes_and_the_worst() -> None:
    nodes = [{"cpu_percent": float(n), "disk_free_gb": 100.0 + n, "gpu_percent": math.nan} for n in range(9)]
    nodes[4]["cpu_percent"], nodes[6]["disk_free_gb"], nodes[1]["disk_free_gb"] = 99.0, 1.5, math.nan

    assert summary(nodes) == pytest.approx(
        {
            "system/cpu_percent_min": 0.0,
            "system/cpu_percent_mean": (36 - 4 + 99) / 9,
            "system/cpu_percent_max": 99.0,
            "system/cpu_percent_worst_node": 4,
            "system/disk_free_gb_min": 1.5,
            "system/disk_free_gb_mean": (9 * 100 + 36 - 101 - 106 + 1.5) / 8,
            "system/disk_free_gb_max": 108.0,
            "system/disk_free_gb_worst_node": 6,
        }
    )


def test_a_file_server_that_hangs_holds_no_row_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked, hanging = threading.Event(), threading.Event()

    def usage(path: str) -> None:
        asked.set()
        hanging.wait(60)

    monkeypatch.setattr(node_metrics.psutil, "disk_usage", usage)
    space = node_metrics._FreeSpace(tmp_path)
    assert asked.wait(10)
    assert math.isnan(space.latest())  # comes back, though the thread does not
    assert sum(thread.name == "free space" and thread.is_alive() for thread in threading.enumerate()) == 1
    hanging.set()


def test_a_machine_that_gives_no_answer_holds_no_row_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refused(**_: object) -> None:
        raise PermissionError("/proc/net/dev")

    monkeypatch.setattr(node_metrics.psutil, "net_io_counters", refused)
    metrics = node_metrics.NodeMetrics(Processes.from_environment(), run_dir=tmp_path, cache_dir=tmp_path)
    on_cpu = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")), datamodule=SimpleNamespace(is_remote=False)
    )
    metrics.start(on_cpu)
    assert metrics.row(on_cpu, metrics.values(on_cpu)) == {}
