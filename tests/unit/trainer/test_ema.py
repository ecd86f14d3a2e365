from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from timm.utils import ModelEmaV3

from configs.run import RunDirectory
from tests.unit.trainer.runs import as_killed_after, average, changed, new_run, rows, train, weights
from trainer.assembly import build_module

LAST = 17


def timms_averages(run: RunDirectory, steps: int) -> list[dict[str, torch.Tensor]]:
    """What timm makes of the raw weights that the run had after each step."""
    config = run.load_config()
    network = build_module(config).network
    ema = ModelEmaV3(network, decay=config.ema.decay, use_warmup=config.ema.use_warmup)
    averages = []
    for step in range(1, steps + 1):
        network.load_state_dict(weights(run, step))
        ema.update(network, step=step)
        averages.append({name: tensor.clone() for name, tensor in ema.module.state_dict().items()})
    return averages


def test_the_average_is_timms_at_every_step(trained: RunDirectory) -> None:
    for step, expected in enumerate(timms_averages(trained, LAST), start=1):
        assert not changed(average(trained, step), expected), step


def test_the_average_with_a_growing_decay_is_timms(toy_overrides: Callable[..., list[str]], tmp_path: Path) -> None:
    settings = {"ema__use_warmup": "true", "ema__decay": 0.999, "trainer__max_steps": 4}
    overrides = toy_overrides(**settings, checkpoint__every_n_steps=1, checkpoint__keep_last=100)
    run = train(new_run(overrides, tmp_path))

    for step, expected in enumerate(timms_averages(run, 4), start=1):
        assert not changed(average(run, step), expected), step


def test_the_average_follows_the_weights_and_the_buffers(trained: RunDirectory) -> None:
    raw, averaged = weights(trained, LAST), average(trained, LAST)

    differing = changed(raw, averaged)
    assert {name for name in raw if "running_" in name} <= differing
    assert "conv_stem.weight" in differing
    assert all(torch.equal(raw[name], averaged[name]) for name in raw if name.endswith("num_batches_tracked"))


@pytest.mark.parametrize("step", [5, 9])
def test_the_average_is_restored_bit_for_bit(trained: RunDirectory, step: int, tmp_path: Path) -> None:
    resumed = train(as_killed_after(trained, tmp_path, step=step), attempt=1)

    for later in (step + 1, LAST):
        assert not changed(average(trained, later), average(resumed, later)), later
        assert not changed(weights(trained, later), weights(resumed, later)), later


def test_without_an_average_there_is_none_in_the_checkpoint_nor_the_metrics(
    toy_overrides: Callable[..., list[str]], tmp_path: Path
) -> None:
    run = train(new_run(toy_overrides(ema__enabled="false", trainer__max_steps=1), tmp_path))

    with pytest.raises(ValueError, match="not enough values"):
        average(run, 1)
    assert not any("ema" in name for name in rows(run)[0])
