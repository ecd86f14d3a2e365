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


def validate(
    run: RunDirectory,
    *,
    checkpoint: Path | None,
    processes: Processes,
    console: Console,
    image_size: int | None = None,
    crop_pct: float | None = None,
) -> None:
    """Print the metrics, and write them to ``validation.json``.

    Args:
        run: Whose weights and validation split.
        checkpoint: Directory of one; None is the newest.
        processes: Of this node.
        console: To print on.
        image_size: Side of images in pixels; None is the run's own. A network often does better on larger ones than it
            was trained on (Touvron et al., arXiv 1906.06423).
        crop_pct: Share of the resized short side that the crop takes; None is the run's own.

    Raises:
        DataError: If the run has no checkpoint that verifies.
    """
    config = run.load_config()
    given = {"eval_image_size": image_size, "crop_pct": crop_pct}
    data = config.data.model_copy(update={key: value for key, value in given.items() if value is not None})
    config = config.model_copy(update={"data": data})
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
    result = {"checkpoint": str(path), "step": step, "samples": len(datamodule.val_index)}
    result |= {"image_size": datamodule.eval_image_size, "crop_pct": data.crop_pct, **metrics}
    write_atomically(run.path / "validation.json", json.dumps(result, indent=2) + "\n")
    title = f"{run.run_id}, step {step}: {result['samples']:,} samples of {result['image_size']} pixels"
    console.print(validation_table(title, metrics))
