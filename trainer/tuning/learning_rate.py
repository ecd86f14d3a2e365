"""``python -m trainer tune-lr``: sweeps the learning rate over the first steps of a run, and says which to take."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.files import write_atomically
from configs.run import RunDirectory
from datamodules.bars import progress_on
from trainer.processes import Processes
from trainer.tuning.attempt import first_phase, try_training
from trainer.tuning.curve import smoothed, suggest
from trainer.tuning.pictures import draw_sweep, sparkline
from trainer.tuning.sweep import LearningRateSweep

ROWS = 12
"""Of the table."""


def tune_learning_rate(
    run: RunDirectory,
    *,
    processes: Processes,
    console: Console,
    min_lr: float,
    max_lr: float,
    steps: int,
    result: Path,
    plot: Path | None,
    progress: Console,
) -> None:
    """Print the curve and a suggestion.

    Args:
        run: A directory that holds the configuration, for the time of the sweep.
        processes: Of this node.
        console: To print on.
        min_lr: Rate of the first step.
        max_lr: Of the last.
        steps: Optimizer steps.
        result: File of JSON for what came of it.
        plot: PNG to draw.
        progress: To show on how far the sweep is.

    Raises:
        ConfigError: If the configuration does not fit this machine.
        DataError: If the data is at fault.
    """
    config = run.load_config()
    with progress_on(progress, quiet=processes.global_rank > 0)("learning rates", steps) as advance:
        sweep = LearningRateSweep(min_lr=min_lr, max_lr=max_lr, steps=steps, on_step=lambda _: advance(1))
        try_training(first_phase(config, steps=steps), processes, [sweep])
    if processes.global_rank:
        return
    found = suggest(sweep.lrs, sweep.losses, steps=steps)
    curve = smoothed(sweep.losses, steps=steps).tolist()
    report = {
        "suggested_lr": rounded(found.lr) if found is not None else None,
        "lowest_loss_lr": rounded(found.lowest_lr) if found is not None else None,
        "override": f"optimizer.lr={rounded(found.lr)}" if found is not None else None,
        "configured_lr": config.optimizer.lr,
        "global_batch_size": config.data.global_batch_size,
        "diverged": sweep.diverged,
        "lrs": [rounded(lr, digits=4) for lr in sweep.lrs],
        "losses": sweep.losses,
        "smoothed_losses": curve,
    }
    if plot is not None:
        draw_sweep(plot, sweep.lrs, sweep.losses, curve, suggestion=found, configured=config.optimizer.lr)
    write_atomically(result, json.dumps(report) + "\n")
    _show(sweep, curve, report, console)


def rounded(rate: float, *, digits: int = 2) -> float:
    """To significant digits: a sweep knows no more."""
    return float(f"{rate:.{digits}g}")


def _show(sweep: LearningRateSweep, curve: list[float], report: dict[str, object], console: Console) -> None:
    table = Table("learning rate", "loss", "smoothed", title="learning-rate sweep", title_justify="left")
    for column in table.columns:
        column.justify = "right"
    last = len(curve) - 1
    for step in sorted({round(row * last / (ROWS - 1)) for row in range(ROWS)}) if curve else ():
        table.add_row(f"{sweep.lrs[step]:.2e}", f"{sweep.losses[step]:.4f}", f"{curve[step]:.4f}")
    console.print(table)
    lines = [f"loss  {sparkline(curve)}"]
    if sweep.diverged:
        lines += [f"diverged after {len(curve)} steps"]
    if report["override"] is None:
        lines += ["no suggestion: the loss did not fall; try other --min-lr and --max-lr, or more --steps"]
    else:
        lines += [
            f"falls fastest at {report['suggested_lr']}, lowest at {report['lowest_loss_lr']}; "
            f"configured {report['configured_lr']}",
            f"for data.global_batch_size={report['global_batch_size']}, as the peak of the schedule:",
            f"  {report['override']}",
        ]
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
