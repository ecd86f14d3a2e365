"""Precisions: how far a loss curve is from that in fp32, all else being equal.

Each trains a compound-scaled EfficientNet on scikit-learn's digits (configs/experiment/digits.yaml, one process,
without dropout) from the same weights, on the same batches. On a GPU `high` and `medium` are TF32 and bf16 products of
fp32 (trainer.matmul_precision); a CPU has none. fp16 has a loss scaler, on a CPU too.

- `<precision>_vs_fp32`: mean loss of the last twentieth of the steps, over that in fp32, less 1.
- `<precision>_apart`: largest distance of the curves, each as means over twentieths of the steps, over fp32's first.

    python -m benchmarks.precision [--steps N]
"""

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.plugins.precision import MixedPrecision

from benchmarks.measure import finish, report
from configs.load import load_config
from configs.schema import Config
from datamodules.digits import build
from trainer.assembly import build_datamodule, build_module, build_trainer
from trainer.batchnorm import BatchNormStatistics
from trainer.processes import Processes

ALONE = Processes(global_rank=0, local_rank=0, world_size=1, local_world_size=1)
PRECISIONS: dict[str, list[str]] = {
    "fp32": ["trainer.precision=32-true"],
    "bf16-mixed": ["trainer.precision=bf16-mixed"],
    "16-mixed": ["trainer.precision=16-mixed"],
}
ON_CUDA = {
    name: ["trainer.precision=32-true", f"trainer.matmul_precision={name}"] for name in ("highest", "high", "medium")
}
SPLITS = (("train", "train"), ("val", "validation"))
"""Of the shards, as settings and as files have them."""
PARTS = 20
"""Of a curve, whose means are compared: single steps are noise."""


class Losses(Callback):
    """The loss of each optimizer step, as a mean over its micro-batches."""

    def __init__(self) -> None:
        self._found: list[torch.Tensor] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep it on the device."""
        if pl_module.ends_step(batch_idx):  # type: ignore[operator]
            self._found.append(pl_module.losses.mean())  # type: ignore[operator, union-attr]

    def values(self) -> list[float]:
        """One a step."""
        return torch.stack(self._found).tolist() if self._found else []


def train(config: Config, accelerator: str, *, scaler: torch.amp.GradScaler | None = None) -> list[float]:
    """The losses of a training in this process, which writes nothing.

    Args:
        config: Of the training.
        accelerator: `cpu` or `cuda`.
        scaler: For fp16 on the CPU, where Lightning has none.
    """
    losses = Losses()
    loop = build_trainer(config, ALONE, accelerator, callbacks=[BatchNormStatistics(), losses], loggers=[])
    if scaler is not None:
        loop.strategy.precision_plugin = MixedPrecision("16-mixed", accelerator, scaler)
    loop.fit(build_module(config), build_datamodule(config, accelerator))
    return losses.values()


def scaler_for(name: str, accelerator: str) -> torch.amp.GradScaler | None:
    """What fp16 needs on the CPU, where Lightning would take bf16 instead."""
    return torch.amp.GradScaler("cpu") if name == "16-mixed" and accelerator == "cpu" else None


def means(losses: list[float]) -> list[float]:
    """Of each twentieth of a curve."""
    size = max(len(losses) // PARTS, 1)
    return [statistics.fmean(losses[start : start + size]) for start in range(0, len(losses) - size + 1, size)]


def distances(losses: list[float], fp32: list[float]) -> tuple[float, float]:
    """At the end, relative; and the largest of all, over the loss that fp32 began with."""
    ours, theirs = means(losses), means(fp32)
    apart = max(abs(a - b) for a, b in zip(ours, theirs, strict=True))
    return ours[-1] / theirs[-1] - 1, apart / theirs[0]


def main() -> None:
    """Train with each, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps
    accelerator = "cuda" if torch.cuda.is_available() else "cpu"
    curves: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder))
        shared = [
            *(f"data.{split}_shards={Path(folder)}/digits-{name}-*.tar" for split, name in SPLITS),
            f"trainer.max_steps={steps}",
            f"trainer.max_epochs={steps // 20 + 2}",
            f"trainer.check_val_every_n_epoch={steps // 20 + 2}",
            "trainer.devices=1",
            "trainer.num_threads=1",
            "data.num_workers=0",
            "model.drop_rate=0",
            "tracking.mode=disabled",
        ]
        for name, settings in (PRECISIONS | (ON_CUDA if accelerator == "cuda" else {})).items():
            config = load_config(["experiment/digits.yaml"], [*shared, *settings]).config
            curves[name] = train(config, accelerator, scaler=scaler_for(name, accelerator))
    shown = range(0, steps, max(steps // 5, 1))
    rows, found = [], {}
    for name, losses in curves.items():
        at_end, apart = distances(losses, curves["fp32"])
        found |= {f"{name}_vs_fp32": at_end, f"{name}_apart": apart} if name != "fp32" else {}
        rows.append([name, *(f"{losses[step]:.3f}" for step in shown), f"{means(losses)[-1]:.4f}", f"{at_end:+.2%}"])
    columns = ["precision", *(f"step {step + 1}" for step in shown), "last twentieth", "beside fp32"]
    report(f"loss over {steps} steps, {accelerator}", columns, rows)
    finish(found)


if __name__ == "__main__":
    main()
