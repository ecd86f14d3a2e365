"""``python -m trainer tune-batch-size``: tries micro-batch sizes on a device, and says which is fastest and which fit.

Lightning's ``Tuner.scale_batch_size`` is not used, but what it is made of: its Trainer, and its judgement of which
errors mean too little memory. It changes the batch size alone, and so the global batch and with it the run; knows no
sizes but doubled ones, no accumulation (https://github.com/Lightning-AI/pytorch-lightning/issues/17393) and no other
ranks (https://github.com/Lightning-AI/pytorch-lightning/issues/20994); goes without the callbacks, so that the averaged
weights are not in memory; measures neither memory nor time; and saves a checkpoint. Here one device is tried by itself:
a rank that runs out of memory would leave the others waiting for it.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from configs.files import write_atomically
from configs.run import RunDirectory
from configs.schema import Config
from datamodules.bars import progress_on
from trainer.assembly import build_datamodule, resolve_accelerator
from trainer.logs import logger
from trainer.tuning.trial import Trial, try_size

AS_FAST = 0.97
"""Share of the fastest size's images/s from which a size counts as fast: trials of the same size differ by as much."""
BATCH_NORM = (
    "BatchNorm normalises each micro-batch by itself: with another data.micro_batch_size a run trains otherwise, "
    "and is another run"
)


def tune_batch_size(
    run: RunDirectory,
    *,
    console: Console,
    sizes: Sequence[int],
    world_size: int,
    steps: int,
    result: Path,
    progress: Console,
) -> None:
    """Print what each size comes to, and a suggestion.

    Args:
        run: A directory that holds the configuration, for the time of the trials.
        console: To print on.
        sizes: That divide a device's share of the global batch, ascending.
        world_size: Devices of the run.
        steps: Optimizer steps that are timed for each.
        result: File of JSON for what came of it.
        progress: To show on how far the trials are.

    Raises:
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault.
    """
    config = run.load_config()
    accelerator = resolve_accelerator(config)
    share = config.data.global_batch_size // world_size

    def attempt(size: int, accumulate: int | None) -> Trial:
        logger.debug("micro-batches of %d", size)
        return try_size(config, size, accumulate, steps=steps)

    with progress_on(progress)("micro-batch sizes", len(sizes)) as advance:

        def counted(size: int) -> Trial:
            trial = attempt(size, share // size)
            advance(1)
            return trial

        trials = try_ascending(sizes, counted)
    largest = None
    if accelerator == "cuda":
        fitting = max((trial.micro_batch_size for trial in trials if trial.trains), default=None)
        failing = next((trial.micro_batch_size for trial in trials if trial.reason == "out of memory"), None)
        if fitting is not None:
            limit = _epoch_samples(config, accelerator)
            with progress.status("the largest size that fits"):
                largest = largest_that_fits(
                    lambda size: attempt(size, None).trains, fitting=fitting, failing=failing, limit=limit
                )
    best = suggested(trials, configured=config.data.micro_batch_size)
    device = torch.cuda.get_device_name() if accelerator == "cuda" else "cpu"
    report = {
        "suggested_micro_batch_size": best.micro_batch_size if best is not None else None,
        "override": f"data.micro_batch_size={best.micro_batch_size}" if best is not None else None,
        "largest_that_divides": max((trial.micro_batch_size for trial in trials if trial.trains), default=None),
        "largest_that_fits": largest,
        "configured_micro_batch_size": config.data.micro_batch_size,
        "global_batch_size": config.data.global_batch_size,
        "world_size": world_size,
        "device": device,
        "trials": [asdict(trial) for trial in trials],
    }
    write_atomically(result, json.dumps(report) + "\n")
    _show(config, trials, report, console)


def try_ascending(sizes: Sequence[int], attempt: Callable[[int], Trial]) -> list[Trial]:
    """Try sizes, up to the first that runs out of memory: larger ones need more."""
    trials: list[Trial] = []
    for size in sorted(sizes):
        trials.append(attempt(size))
        if trials[-1].reason == "out of memory":
            break
    return trials


def largest_that_fits(fits: Callable[[int], bool], *, fitting: int, failing: int | None, limit: int) -> int:
    """The largest size, to 3%, by doubling until one does not fit, and halving what lies between.

    Args:
        fits: Tries a size.
        fitting: One that fits.
        failing: One that does not, if any is known.
        limit: Largest that can be tried.
    """
    limit -= limit % 2  # Mixup mixes pairs
    while failing is None and fitting < limit:
        size = min(2 * fitting, limit)
        if fits(size):
            fitting = size
        else:
            failing = size
    while failing is not None and failing - fitting > max(fitting // 32, 4):
        size = (fitting + failing) // 4 * 2
        if fits(size):
            fitting = size
        else:
            failing = size
    return fitting


def suggested(trials: Sequence[Trial], *, configured: int) -> Trial | None:
    """The configured size where it is as fast as any, since then nothing need change; else the fastest."""
    trained = {trial.micro_batch_size: trial for trial in trials if trial.images_per_s is not None}
    if not trained:
        return None
    fastest = max(trained.values(), key=lambda trial: trial.images_per_s or 0.0)
    own = trained.get(configured)
    if own is not None and (own.images_per_s or 0.0) >= AS_FAST * (fastest.images_per_s or 0.0):
        return own
    return fastest


def _epoch_samples(config: Config, accelerator: str) -> int:
    datamodule = build_datamodule(config, accelerator)
    datamodule.prepare_data()
    datamodule.setup("validate")
    return datamodule.order.samples


def _show(config: Config, trials: Sequence[Trial], report: Mapping[str, object], console: Console) -> None:
    table = Table(title=f"micro-batch sizes on one device: {report['device']}", title_justify="left")
    for heading in ("micro-batch", "accumulated", "images/s", "peak memory", ""):
        table.add_column(heading, justify="right" if heading else "left")
    for trial in trials:
        notes = [trial.reason] if trial.reason is not None else []
        notes += ["configured"] if trial.micro_batch_size == config.data.micro_batch_size else []
        table.add_row(
            str(trial.micro_batch_size),
            str(trial.accumulate_grad_batches),
            f"{trial.images_per_s:,.1f}" if trial.images_per_s is not None else "",
            f"{trial.peak_bytes / 1e9:.2f} GB" if trial.peak_bytes is not None else "",
            ", ".join(notes),
        )
    console.print(table)
    share = f"{report['global_batch_size']} / {report['world_size']} device(s)"
    lines = [f"largest that divides a device's share of the global batch ({share}): {report['largest_that_divides']}"]
    if report["largest_that_fits"] is not None:
        lines += [f"largest that fits in memory at all, to 3%: {report['largest_that_fits']}"]
    elif report["device"] == "cpu":
        lines += ["on a CPU memory does not run out before the machine does: larger sizes were not tried"]
    lines += [BATCH_NORM]
    if report["override"] is None:
        lines += ["no size trains on this device"]
    elif report["suggested_micro_batch_size"] == report["configured_micro_batch_size"]:
        lines += [f"as fast as any: {report['override']}, as configured"]
    else:
        lines += ["fastest:", f"  {report['override']}"]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
