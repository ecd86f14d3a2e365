"""Each feature under each strategy that docs/features.md has a ✓ for: trained, gone on with, exported."""

import io
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from configs.run import RunDirectory
from tests.features.catalogue import FEATURES, GLOBAL_BATCH_SIZE, PLAIN, STEPS, STRATEGIES, Feature
from tests.features.runs import prepare, write_shards
from tests.features.table import ON_CUDA, TRAINED, cell
from tests.features.training import RESUMED, train_and_go_on
from tests.integration.runs import losses, newest
from tests.ports import free_port
from tests.unit.trainer.runs import ALONE
from trainer.checkpoint_files import load_weights
from trainer.export import export
from trainer.network import build_network

TIMEOUT_S = 1500
ROWS = {feature.name: feature for feature in [PLAIN, *FEATURES]}
Runs = dict[str, RunDirectory]
Trained = Callable[[str, bool], Runs]


def in_turn(strategy: str, *, takes_long: bool = False, mark: str = TRAINED) -> list[Feature]:
    """The features that are trained one after the other, after the run that has none."""
    found = [row for row in FEATURES if row.takes_long == takes_long and cell(row, strategy) == mark]
    return [PLAIN, *found]


def run_ranks(runs: Runs, folder: Path, *, world_size: int) -> None:
    """Train all of them in as many processes."""
    file = folder / "runs.json"
    file.write_text(json.dumps([str(run.path) for run in runs.values()]))
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(world_size)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.features.training", str(file)],
            stdout=(folder / f"{rank}.log").open("w"),
            stderr=subprocess.STDOUT,
            env=os.environ | shared | {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world_size)},
        )
        for rank in range(world_size)
    ]
    try:
        codes = [rank.wait(TIMEOUT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert codes == [0] * world_size, [(folder / f"{rank}.log").read_text()[-6000:] for rank in range(world_size)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """The finished runs of a strategy by the name of their feature."""
    shards = write_shards(tmp_path_factory.mktemp("few"))

    @cache
    def trained(strategy: str, takes_long: bool) -> Runs:
        folder = tmp_path_factory.mktemp("features")
        features = in_turn(strategy, takes_long=takes_long)
        runs = {each.name: prepare(each, strategy, shards=shards, runs_dir=folder) for each in features}
        if strategy == "single":
            torch.set_num_threads(1)
            for run in runs.values():
                train_and_go_on(run, ALONE)
        else:
            run_ranks(runs, folder, world_size=2)
        return runs

    return trained


def cells() -> list[object]:
    """Strategy by strategy, as each trains all of its features at once."""
    return [
        pytest.param(
            strategy,
            feature.name,
            marks=[pytest.mark.slow, pytest.mark.timeout(2 * TIMEOUT_S)]
            if takes_long or strategy not in ("single", "ddp")
            else [],
        )
        for strategy in STRATEGIES
        for takes_long in (False, True)
        for feature in in_turn(strategy, takes_long=takes_long)[takes_long:]
    ]


@pytest.mark.parametrize(("strategy", "name"), cells())
def test_a_feature_trains_goes_on_and_is_exported(strategy: str, name: str, trained: Trained, tmp_path: Path) -> None:
    feature = ROWS[name]
    runs = trained(strategy, feature.takes_long)
    check(feature, runs, tmp_path)
    alone = trained("single", feature.takes_long)
    if name in alone:  # micro-batch by micro-batch it is the same run
        near = 1e-2 if feature.leaves_weights == "rounding" else 1e-3
        assert losses(runs[name]) == pytest.approx(losses(alone[name]), rel=near)


def check(feature: Feature, runs: Runs, out_dir: Path) -> None:
    """A run went to its end, goes on from before it bit for bit, did what the feature is for, and is plain timm's."""
    run, plain = runs[feature.name], runs[PLAIN.name]
    assert len(losses(run)) == STEPS
    assert all(map(math.isfinite, losses(run)))

    weights = load_weights(newest(run))
    resumed = load_weights(newest(RunDirectory(run.path.parent / RESUMED / run.run_id)))
    assert newest(run).name == f"step-{STEPS:09d}"
    assert weights.keys() == resumed.keys() == ({"raw", "ema"} if run.load_config().ema.enabled else {"raw"})
    for kind, tensors in weights.items():
        differing = [name for name, tensor in tensors.items() if not torch.equal(tensor, resumed[kind][name])]
        assert not differing, kind

    without = load_weights(newest(plain))["raw"]
    same = without.keys() == weights["raw"].keys() and all(
        torch.equal(tensor, without[name])
        for name, tensor in weights["raw"].items()
        if tensor.shape == without[name].shape
    )
    assert feature.leaves_weights == "rounding" or same == (feature.leaves_weights == "same")

    file = export(run, checkpoint=None, out_dir=out_dir, raw=False, console=Console(file=io.StringIO()))
    network = build_network(run.load_config(), restored=True)
    network.load_state_dict(load_file(file), strict=True)
    exported = weights.get("ema", weights["raw"])
    assert all(torch.equal(tensor, exported[name]) for name, tensor in network.state_dict().items())


@pytest.mark.gpu
@pytest.mark.timeout(2 * TIMEOUT_S)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_what_only_cuda_does_trains_there(strategy: str, tmp_path: Path) -> None:
    """TF32, CUDA graphs, fp16, and 16 bits under DeepSpeed: a CPU refuses them."""
    shards = write_shards(tmp_path)
    changes = {"trainer__accelerator": "cuda", "trainer__devices": 1, "trainer__deterministic": "true"}
    at_once = {"data__micro_batch_size": GLOBAL_BATCH_SIZE}
    runs = {
        each.name: prepare(
            each, strategy, shards=shards, runs_dir=tmp_path, **changes, **({} if each.accumulates else at_once)
        )
        for each in in_turn(strategy, mark=ON_CUDA)
    }
    if strategy == "single":  # not a rank among one
        for run in runs.values():
            train_and_go_on(run, ALONE)
    else:
        run_ranks(runs, tmp_path, world_size=1)
    for feature in in_turn(strategy, mark=ON_CUDA):
        check(feature, runs, tmp_path)
