"""Which kind of device a configuration trains on, and what it cannot have there."""

import pytest
import torch

from configs.problems import ConfigError
from tests.unit.trainer.settings import settings
from trainer.assembly import resolve_accelerator

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")


@without_gpu
@pytest.mark.parametrize(
    ("key", "value", "accepted"),
    [
        ("data.decoder", "nvjpeg", "cpu: no CUDA device is here"),
        ("trainer.accelerator", "cuda", "cpu: no CUDA device is here"),
        ("trainer.precision", "16-mixed", "32-true or bf16-mixed: no CUDA device is here"),
    ],
)
def test_what_needs_a_gpu_is_refused_without_one(key: str, value: str, accepted: str) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_accelerator(settings(**{key.replace(".", "__"): value}))
    (problem,) = caught.value.problems
    assert (problem.key, problem.received, problem.accepted) == (key, value, accepted)


@without_gpu
def test_auto_is_the_cpu_where_there_is_no_gpu() -> None:
    assert resolve_accelerator(settings()) == "cpu"
