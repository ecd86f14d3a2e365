import math
import subprocess
import sys

import pytest

from configs.problems import ConfigError
from configs.sweep_file import Sweep
from launch.sweeps.search import number_of_trials, parameters_of

RANDOM = Sweep(
    document={
        "method": "random",
        "run_cap": 400,
        "parameters": {
            "optimizer.lr": {"distribution": "log_uniform_values", "min": 1e-4, "max": 1.0},
            "seed": {"min": 3, "max": 5},
            "loss.mixup_alpha": {"min": 0.0, "max": 1.0},
            "data.image_size": {"distribution": "q_uniform", "min": 32, "max": 128, "q": 32},
            "model.name": {"values": ["a", "b"], "probabilities": [0.9, 0.1]},
            "ema.decay": {"value": 0.5},
        },
    }
)


def test_a_grid_is_every_combination_once() -> None:
    parameters = {"seed": {"min": 1, "max": 2}, "optimizer.lr": {"values": [0.1, 0.2, 0.3]}, "ema.decay": {"value": 1}}
    sweep = Sweep(document={"method": "grid", "parameters": parameters})
    found = [tuple(parameters_of(sweep, index, seed="x").values()) for index in range(number_of_trials(sweep))]
    assert found == [(seed, lr, 1) for seed in (1, 2) for lr in (0.1, 0.2, 0.3)]


def test_random_trials_follow_their_distributions() -> None:
    found = [parameters_of(RANDOM, index, seed="x") for index in range(number_of_trials(RANDOM))]
    logs = [math.log10(trial["optimizer.lr"]) for trial in found]
    assert -4 <= min(logs) < -3.8 < -0.2 < max(logs) <= 0
    assert 0.4 < sum(log < -2 for log in logs) / len(logs) < 0.6
    assert {trial["seed"] for trial in found} == {3, 4, 5}
    assert {trial["data.image_size"] for trial in found} == {32, 64, 96, 128}
    assert 0.8 < sum(trial["model.name"] == "a" for trial in found) / len(found) < 1
    assert {trial["ema.decay"] for trial in found} == {0.5}


def test_a_trial_is_the_same_in_any_process_and_another_by_another_seed() -> None:
    program = "from tests.unit.launch.test_sweep_search import *; print(parameters_of(RANDOM, 7, seed='x'))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(parameters_of(RANDOM, 7, seed="x"))
    assert parameters_of(RANDOM, 7, seed="x") != parameters_of(RANDOM, 7, seed="y")


@pytest.mark.parametrize("change", [{"method": "bayes"}, {"early_terminate": {"type": "hyperband"}}, {"run_cap": None}])
def test_what_needs_a_server_or_has_no_end_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        number_of_trials(Sweep(document={**RANDOM.document, **change}))
