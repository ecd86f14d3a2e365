"""How a network is computed: compiled, by which precision, by which algorithms."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from configs.problems import ConfigError
from tests.unit.trainer.runs import ALONE, as_killed_after, average, changed, new_run, rows, train, weights
from tests.unit.trainer.settings import settings
from trainer.assembly import build_module, build_trainer

Overrides = Callable[..., list[str]]
SHORT = {
    "model__name": "test_efficientnet",
    "model__compound_phi": None,
    "data__image_size": 32,
    "data__eval_batch_size": 37,  # all samples: a smaller last batch has a graph of its own
    "trainer__max_steps": 4,
    "checkpoint__every_n_steps": 1,
    "checkpoint__keep_last": 9,
}
STILL = {"model__drop_rate": 0.0, "model__drop_path_rate": 0.0}


def compilations() -> int:
    """Graphs of this process so far."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


@pytest.mark.slow  # a minute and a half of g++ the first time
def test_a_compiled_network_trains_as_the_plain_one_and_resumes_bit_for_bit(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    """Two micro-batches a step and a network of its own for validation, in two graphs all in all."""
    before = compilations()
    compiled = train(new_run(toy_overrides(trainer__compile="default", **SHORT, **STILL), tmp_path / "compiled"))
    graphs = compilations() - before
    plain = train(new_run(toy_overrides(**SHORT, **STILL), tmp_path / "plain"))
    resumed = train(as_killed_after(compiled, tmp_path / "resumed", step=2), attempt=1)

    assert graphs == 2
    for kind in (weights, average):
        assert kind(compiled, 4).keys() == kind(plain, 4).keys()
        for name, tensor in kind(plain, 4).items():
            torch.testing.assert_close(kind(compiled, 4)[name], tensor, rtol=1e-3, atol=1e-4, msg=name)
        assert not changed(kind(compiled, 4), kind(resumed, 4))
    losses = [[float(row["train/loss"]) for row in rows(run) if row["train/loss"]] for run in (plain, compiled)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    for name in ("val/loss", "val/ema_loss"):
        found = [float(row[name]) for run in (plain, compiled) for row in rows(run) if row[name]]
        assert found[0] == pytest.approx(found[1], rel=1e-3)


@pytest.mark.slow
def test_a_compiled_network_draws_the_same_masks_after_a_resume(toy_overrides: Overrides, tmp_path: Path) -> None:
    overrides = toy_overrides(trainer__compile="default", model__drop_rate=0.4, **SHORT)
    run = train(new_run(overrides, tmp_path / "whole"))
    resumed = train(as_killed_after(run, tmp_path / "again", step=2), attempt=1)

    assert not changed(weights(run, 4), weights(resumed, 4))


def test_compiling_changes_no_name_and_nothing_is_compiled_before_it_is_called() -> None:
    tiny = {"model__name": "test_efficientnet", "data__num_classes": 4}
    before = compilations()
    compiled, plain = (build_module(settings(trainer__compile=mode, **tiny)) for mode in ("default", None))

    assert compiled.state_dict().keys() == plain.state_dict().keys()
    assert compiled.network._compiled_call_impl is not None
    assert plain.network._compiled_call_impl is None
    assert compilations() == before


@pytest.fixture
def _torchs_own() -> Iterator[None]:
    """torch as it was before, afterwards."""
    precision, tf32 = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    benchmark = torch.backends.cudnn.benchmark
    yield
    torch.backends.cudnn.benchmark = benchmark
    torch.set_float32_matmul_precision(precision)
    torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_torchs_own")
@pytest.mark.parametrize(
    ("wanted", "matmul", "tf32"),
    [(None, "highest", True), ("highest", "highest", False), ("high", "high", True), ("medium", "medium", True)],
)
def test_the_precision_of_products_is_torchs_or_what_is_set(wanted: str | None, matmul: str, tf32: bool) -> None:
    build_trainer(settings(trainer__matmul_precision=wanted), ALONE, "cpu", callbacks=[], loggers=[])

    assert torch.get_float32_matmul_precision() == matmul
    assert torch.backends.cudnn.allow_tf32 == tf32


@pytest.mark.usefixtures("_torchs_own")
def test_graphs_that_would_accumulate_are_refused_where_the_devices_are_known_late() -> None:
    changes = {"trainer__devices": "auto", "trainer__accelerator": "auto", "trainer__compile": "max-autotune"}
    sizes = {"data__global_batch_size": 64, "data__micro_batch_size": 32}
    with pytest.raises(ConfigError, match="several micro-batches a step") as error:
        build_trainer(settings(**changes, **sizes), ALONE, "cpu", callbacks=[], loggers=[])
    assert [problem.key for problem in error.value.problems] == ["trainer.compile"]


@pytest.mark.usefixtures("_torchs_own")
@pytest.mark.parametrize(
    ("changes", "tries"),
    [({}, True), ({"trainer__benchmark": "false"}, False), ({"trainer__deterministic": "true"}, False)],
)
def test_cudnn_tries_its_algorithms_where_they_may_differ(changes: dict[str, object], tries: bool) -> None:
    build_trainer(settings(**changes), ALONE, "cpu", callbacks=[], loggers=[])

    assert torch.backends.cudnn.benchmark == tries


@pytest.mark.usefixtures("_torchs_own")
def test_a_deterministic_run_is_so_to_its_end_and_has_the_same_weights(
    toy_overrides: Overrides, tmp_path: Path
) -> None:
    short = {"trainer__max_steps": 2}
    first = train(new_run(toy_overrides(trainer__deterministic="true", **short), tmp_path / "first"))
    assert torch.are_deterministic_algorithms_enabled()
    second = train(new_run(toy_overrides(trainer__deterministic="false", **short), tmp_path / "second"))

    assert not torch.are_deterministic_algorithms_enabled()
    assert not changed(weights(first, 2), weights(second, 2))
