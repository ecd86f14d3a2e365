import math
from typing import Any

import pytest
import timm
import torch
from timm.optim import Lamb, Lion, Muon, RMSpropTF
from timm.scheduler import create_scheduler_v2
from torch import nn

from configs import schema
from configs.problems import ConfigError
from configs.schema import Scheduler
from tests.unit.trainer.settings import settings
from trainer.network import build_network
from trainer.optimization import build_optimizer, build_scheduler

EPOCHS, UPDATES = 10, 7


@pytest.fixture(scope="module")
def network() -> nn.Module:
    model: nn.Module = timm.create_model("test_efficientnet", num_classes=4)
    return model


def optimizer(**changes: Any) -> schema.Optimizer:
    return settings(**{f"optimizer__{key}": value for key, value in changes.items()}).optimizer


@pytest.mark.parametrize(
    ("opt", "kind"),
    [
        ("rmsproptf", RMSpropTF),
        ("sgd", torch.optim.SGD),
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("AdamW", torch.optim.AdamW),
        ("lamb", Lamb),
        ("lion", Lion),
        ("muon", Muon),
    ],
)
def test_timms_optimizers_build_by_timms_names_and_take_a_step(opt: str, kind: type, network: nn.Module) -> None:
    built = build_optimizer(network, optimizer(opt=opt, lr=0.01))

    assert type(built) is kind
    assert {group["lr"] for group in built.param_groups} == {0.01}
    before = network.state_dict()["classifier.weight"].clone()
    network(torch.rand(2, 3, 64, 64)).square().sum().backward()
    built.step()
    assert not torch.equal(before, network.state_dict()["classifier.weight"])


def test_the_default_is_googles_rmsprop(network: nn.Module) -> None:
    (group, *_) = build_optimizer(network, optimizer(kwargs="{alpha: 0.9, eps: 0.001}")).param_groups

    assert (group["alpha"], group["eps"], group["momentum"]) == (0.9, 0.001, 0.9)


@pytest.mark.parametrize("opt", ["rmsproptf", "adamw", "muon"])
def test_biases_and_batchnorm_are_not_decayed_and_all_else_is(opt: str, network: nn.Module) -> None:
    built = build_optimizer(network, optimizer(opt=opt, weight_decay=0.05))

    decay = {id(parameter): group["weight_decay"] for group in built.param_groups for parameter in group["params"]}
    assert len(decay) == len(list(network.parameters()))
    for name, parameter in network.named_parameters():
        exempt = name.endswith(".bias") or ".bn" in name or name.startswith("bn")
        assert decay[id(parameter)] == (0 if exempt else 0.05), name


def test_arguments_of_the_optimizer_reach_it(network: nn.Module) -> None:
    built = build_optimizer(network, optimizer(opt="adamw", kwargs="{betas: [0.8, 0.95], eps: 1e-6, amsgrad: true}"))

    for group in built.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.8, 0.95), 1e-6, True)


@pytest.mark.parametrize(
    ("changes", "key", "accepted"),
    [
        ({"opt": "adamm"}, "optimizer.opt", "did you mean adam"),
        ({"opt": "rmsprop_tf"}, "optimizer.opt", "did you mean rmsproptf"),
        ({"opt": "my_adam"}, "optimizer.opt", "adam"),  # timm would read what follows the underscore
        ({"opt": "zzz"}, "optimizer.opt", "one of timm's: adabelief"),
        ({"opt": "adahessian"}, "optimizer.opt", "no second derivatives"),
        ({"opt": "adamw", "kwargs": "{bettas: [0.9, 0.99]}"}, "optimizer.kwargs", "arguments of adamw .*bettas"),
        ({"opt": "adamw", "kwargs": "{betas: [0.9, 1.5]}"}, "optimizer.kwargs", r"arguments of adamw .*1\.5"),
        # timm would leave these out and say nothing.
        ({"opt": "sgd", "kwargs": "{eps: 0.001}"}, "optimizer.kwargs", "arguments of sgd, which has no eps"),
        ({"opt": "rmsproptf", "kwargs": "{betas: [0.9, 0.99]}"}, "optimizer.kwargs", "which has no betas"),
    ],
)
def test_a_wrong_optimizer_or_argument_is_refused(
    changes: dict[str, str], key: str, accepted: str, network: nn.Module
) -> None:
    with pytest.raises(ConfigError, match=accepted) as caught:
        build_optimizer(network, optimizer(**changes))

    (problem,) = caught.value.problems
    assert problem.key == key
    assert changes[key.removeprefix("optimizer.")].split(":")[0].strip("{") in problem.received


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for an optimizer that needs CUDA, where there is none")
def test_an_optimizer_that_cannot_run_here_is_refused(network: nn.Module) -> None:
    with pytest.raises(ConfigError, match="CUDA required") as caught:
        build_optimizer(network, optimizer(opt="bnbadam8bit"))

    assert caught.value.problems[0].key == "optimizer.opt"


def test_layer_decay_is_timms_and_leaves_the_head_its_rate() -> None:
    network = build_network(settings(model__name="efficientnet_b0", data__num_classes=4, model__head_hidden_features=8))
    built = build_optimizer(network, optimizer(opt="adamw", lr=0.1, layer_decay=0.5, weight_decay=0.05))
    build_scheduler(built, settings(scheduler__warmup_epochs=0.0).scheduler, max_epochs=9, updates_per_epoch=7)

    rates = {id(parameter): group["lr"] for group in built.param_groups for parameter in group["params"]}
    decay = {id(parameter): group["weight_decay"] for group in built.param_groups for parameter in group["params"]}
    named = dict(network.named_parameters())
    assert rates.keys() == {id(parameter) for parameter in named.values()}
    assert {rates[id(p)] for name, p in named.items() if name.startswith("classifier.")} == {0.1}
    depth = [rates[id(named[f"blocks.{stage}.0.conv_pw.weight"])] for stage in range(1, 7)]
    assert depth == sorted(depth)
    assert len(set(depth)) == 6
    assert rates[id(named["conv_stem.weight"])] < depth[0] < 0.1
    assert {decay[id(p)] for name, p in named.items() if name.endswith(".bias") or ".bn" in name} == {0}


def test_lookahead_wraps_an_optimizer(network: nn.Module) -> None:
    assert type(build_optimizer(network, optimizer(opt="lookahead_sgd"))).__name__ == "Lookahead"


# Schedules


def one_parameter(lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def curve(scheduler: Any, steps: int) -> list[float]:
    """The learning rate of each optimizer step."""
    rates = []
    for step in range(steps):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.step_update(step + 1)
    return rates


def ours(steps: int = EPOCHS * UPDATES, **changes: Any) -> list[float]:
    config = settings(trainer__max_epochs=EPOCHS, **{f"scheduler__{key}": value for key, value in changes.items()})
    built = build_scheduler(
        one_parameter(0.4), config.scheduler, max_epochs=config.trainer.max_epochs, updates_per_epoch=UPDATES
    )
    return curve(built, steps)


@pytest.mark.parametrize("warmup", [0.0, 2.0, 2.5])
@pytest.mark.parametrize(
    "shape",
    [
        {"sched": "cosine", "min_lr": 0.01},
        {"sched": "tanh", "min_lr": 0.01},
        {"sched": "poly", "min_lr": 0.01, "decay_rate": 0.9},
        {"sched": "step", "decay_epochs": 2.4, "decay_rate": 0.97},
        {"sched": "constant"},
        {"sched": "multistep", "decay_milestones": [3.0, 6.5], "decay_rate": 0.1},
        {"sched": "wsd", "min_lr": 0.01},
        {"sched": "wsd", "decay_epochs": 3.0, "decay_fn": "exp"},
        {"sched": "rsqrt", "stable_timescale": 1.5, "decay_epochs": 0.4},
        {"sched": "cosine", "cycle_mul": 2.0, "cycle_decay": 0.5, "cycle_limit": 2, "k_decay": 0.7},
    ],
    ids=lambda shape: shape["sched"],
)
def test_the_learning_rate_of_every_step_is_timms(shape: dict[str, Any], warmup: float) -> None:
    theirs, _ = create_scheduler_v2(
        one_parameter(0.4),
        num_epochs=EPOCHS,
        warmup_epochs=warmup,  # type: ignore[arg-type]
        warmup_lr=1e-4,
        step_on_epochs=False,
        updates_per_epoch=UPDATES,
        **shape,
    )
    # tanh does not begin at its peak: without a warm-up, timm leaves the first step to whoever calls it.
    theirs.step_update(0)

    steps = (EPOCHS + 2) * UPDATES  # also past the end
    own = {key: value for key, value in shape.items() if key in Scheduler.model_fields}
    further = {key: value for key, value in shape.items() if key not in own}
    assert ours(steps, warmup_epochs=warmup, warmup_lr=1e-4, kwargs=further, **own) == curve(theirs, steps)


def test_a_schedule_without_room_is_refused() -> None:
    with pytest.raises(ConfigError, match="a schedule that has room in 10 epochs of 7 steps") as caught:
        ours(sched="wsd", decay_epochs=0.001)

    assert caught.value.problems[0].key == "scheduler.sched"


def test_the_warm_up_is_linear_and_lies_inside_the_epochs() -> None:
    rates = ours(sched="cosine", warmup_epochs=2.0, warmup_lr=0.0)

    assert rates[: 2 * UPDATES] == pytest.approx([0.4 * step / (2 * UPDATES) for step in range(2 * UPDATES)])
    half = EPOCHS * UPDATES // 2
    assert rates[half] == pytest.approx(0.2)


def test_step_multiplies_by_the_rate_after_so_many_epochs() -> None:
    rates = ours(sched="step", decay_epochs=2.4, decay_rate=0.97, warmup_epochs=0.0)

    assert rates == pytest.approx([0.4 * 0.97 ** math.floor(step / (2.4 * UPDATES)) for step in range(len(rates))])


def test_poly_falls_by_its_power() -> None:
    rates = ours(sched="poly", decay_rate=2.0, warmup_epochs=0.0)

    assert rates == pytest.approx([0.4 * (1 - step / len(rates)) ** 2 for step in range(len(rates))])


def test_a_schedule_is_a_function_of_the_step_alone() -> None:
    config = settings(trainer__max_epochs=EPOCHS, scheduler__warmup_epochs=1.0)
    built = build_scheduler(one_parameter(0.4), config.scheduler, max_epochs=EPOCHS, updates_per_epoch=UPDATES)
    built.step_update(31)

    assert built.optimizer.param_groups[0]["lr"] == ours(warmup_epochs=1.0)[31]
