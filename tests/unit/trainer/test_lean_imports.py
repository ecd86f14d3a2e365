"""What a rank imports, in fresh interpreters."""

import subprocess
import sys

AFTERWARDS = """
import sys
import trainer.fit
print([name for name in ("scipy", "matplotlib") if name in sys.modules])

import lightning_utilities.core.imports as imports
import matplotlib.pyplot, scipy.signal  # there, for who asks for them
print(imports._version("scipy") == scipy.__version__, bool(imports.RequirementCache("matplotlib")))
print([type(finder).__module__ for finder in sys.meta_path if "lean_imports" in type(finder).__module__])

import torch, torchmetrics
accuracy = torchmetrics.MetricCollection([torchmetrics.classification.MulticlassAccuracy(4, average="micro")])
print(accuracy(torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, 2, 0]))["MulticlassAccuracy"].item())
"""


def test_a_rank_starts_without_scipy_and_matplotlib_and_may_have_them_later() -> None:
    done = subprocess.run([sys.executable, "-c", AFTERWARDS], capture_output=True, text=True, check=False)
    assert done.stdout.splitlines() == ["[]", "True True", "[]", "0.75"], done.stdout + done.stderr


def test_where_torchmetrics_was_imported_before_nothing_is_left_behind() -> None:
    program = "import torchmetrics, sys; import trainer; print('scipy' in sys.modules, 'lean' in str(sys.meta_path))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True False", done.stderr
