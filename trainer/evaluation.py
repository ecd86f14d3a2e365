"""``python -m trainer validate``: exact metrics of a finished run's weights on its validation split."""

import json
from pathlib import Path

from rich.console import Console

from configs.run import RunDirectory, write_atomically
from trainer.assembly import build_datamodule, build_module, build_trainer, resolve_accelerator
from trainer.checkpoint_files import load_weights, read_manifest
from trainer.checkpoints import CheckpointDirectory
from trainer.network import build_network
from trainer.processes import Processes
from trainer.results import validation_table


def validate(run: RunDirectory, *, checkpoint: Path | None, processes: Processes, console: Console) -> None:
    """Print the metrics, and write them to ``validation.json``.

    Raises:
        DataError: If the run has no checkpoint that verifies.
    """
    config = run.load_config()
    path = CheckpointDirectory(run.checkpoints).chosen(checkpoint)
    weights, step = load_weights(path), read_manifest(path)["step"]
    accelerator = resolve_accelerator(config)
    module = build_module(config, restored=True)
    module.network.load_state_dict(weights["raw"])
    if "ema" in weights:
        average = build_network(config, restored=True)
        average.load_state_dict(weights["ema"])
        device = "cuda" if accelerator == "cuda" else "cpu"
        module.set_average(average.to(device).eval().requires_grad_(requires_grad=False))
    trainer = build_trainer(config, processes, accelerator, callbacks=[], loggers=[])
    trainer.validate(module, build_datamodule(config, accelerator), verbose=False)
    if not trainer.is_global_zero:
        return
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    datamodule = trainer.datamodule  # type: ignore[attr-defined]
    result = {"checkpoint": str(path), "step": step, "samples": len(datamodule.val_index), **metrics}
    write_atomically(run.path / "validation.json", json.dumps(result, indent=2) + "\n")
    console.print(validation_table(f"{run.run_id}, step {step}: {result['samples']:,} samples", metrics))
