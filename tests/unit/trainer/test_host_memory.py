import os
import platform
import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="sets glibc's malloc")

PROGRAM = """
import resource, sys
import torch

kept = False
if sys.argv[1] == "keep":
    from trainer.host_memory import keep_freed_memory

    kept = keep_freed_memory()
elif sys.argv[1] == "train":
    from configs.load import load_config
    from trainer.assembly import build_trainer
    from trainer.processes import Processes

    config = load_config([], ["data.train_shards=none.tar", "data.val_shards=none.tar"]).config
    build_trainer(config, Processes.from_environment(), "cpu", callbacks=[], loggers=[])


def step():
    layers = [torch.ones(size << 18) for size in (1, 8, 40, 3)]  # 1 to 40 MiB
    return sum(float(layer[0]) for layer in layers)


for _ in range(10):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(how: str, **environment: str) -> tuple[bool, int]:
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], env=plain | environment, capture_output=True, text=True, check=True
    )
    kept, faults = done.stdout.split()
    return kept == "True", int(faults)


def test_a_step_that_frees_its_tensors_gets_the_same_memory_at_the_next() -> None:
    _, without = page_faults("leave")
    kept, faults = page_faults("keep")
    assert kept
    assert without > 1000
    assert faults < without / 10
    _, in_training = page_faults("train")
    assert in_training < without / 10


def test_settings_of_the_environment_are_left_alone() -> None:
    assert page_faults("keep", MALLOC_ARENA_MAX="4")[0] is False
    assert page_faults("keep", GLIBC_TUNABLES="glibc.malloc.arena_max=4")[0] is False
